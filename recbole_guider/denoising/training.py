"""RecBole's training around a denoised model: which interaction is which, epochs, and the method's optimisers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from recbole.data.interaction import Interaction

from recbole_guider.denoising.model import INTERACTION
from recbole_guider.training.checkpoint import PlainCheckpoints
from recbole_guider.utils.errors import GuiderError


class DenoisingTraining(PlainCheckpoints):
    """Mixed into a RecBole trainer to train a :class:`~recbole_guider.denoising.model.Denoised`.

    The epoch loop is RecBole's. Batches carry the number of each training interaction, the method is told of every
    epoch, and the optimisers that a method keeps for itself are saved and restored with the backbone's.
    """

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.method_optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam(network.parameters(), lr=learning_rate)
            for name, (network, learning_rate) in model.method.own_networks().items()
        }
        model.method.optimizers = self.method_optimizers

    def _build_optimizer(self, **kwargs: Any) -> Any:
        kwargs.setdefault("params", self.model.jointly_trained())
        return super()._build_optimizer(**kwargs)

    def _train_epoch(self, train_data: Any, epoch_idx: int, loss_func: Any = None, show_progress: bool = False) -> Any:
        self.model.method.begin_epoch(epoch_idx)
        losses = super()._train_epoch(train_data, epoch_idx, loss_func=loss_func, show_progress=show_progress)
        self.model.method.end_epoch(epoch_idx)
        return losses

    def fit(self, train_data: Any, valid_data: Any = None, verbose: bool = True, saved: bool = True,
            show_progress: bool = False, callback_fn: Any = None) -> tuple[float, Any]:
        dataset = train_data.dataset
        expected = len(self.model.method.context.users)
        if len(dataset.inter_feat) != expected:
            raise GuiderError(
                f"the model was made for {expected} training interactions and the loader has "
                f"{len(dataset.inter_feat)}: use the data set it was made with."
            )
        dataset.inter_feat.update(Interaction({INTERACTION: torch.arange(expected)}))
        return super().fit(train_data, valid_data, verbose, saved, show_progress, callback_fn)

    def extra_state(self) -> dict[str, Any]:
        return {name: optimizer.state_dict() for name, optimizer in self.method_optimizers.items()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        for name, optimizer in self.method_optimizers.items():
            optimizer.load_state_dict(state[name])
