"""The training of a denoised model: which interaction is which, the method's epochs and optimisers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from recbole.data.interaction import Interaction
from recbole.trainer import Trainer

from recbole_guider.denoising.model import INTERACTION
from recbole_guider.training.loop import Training
from recbole_guider.training.steps import Steps, recboles_trainer
from recbole_guider.utils.errors import GuiderError


class DenoisingTraining(Training):
    """The training of a :class:`~recbole_guider.denoising.model.Denoised`.

    Batches carry the number of each training interaction, the method is told of every epoch, and the optimisers that a
    method keeps for itself are saved and restored with the backbone's.

    Raises:
        GuiderError: RecBole trains the backbone in a way of its own.
    """

    def __init__(self, config: Any, model: Any) -> None:
        super().__init__(config, model)
        self.method_optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam(network.parameters(), lr=learning_rate)
            for name, (network, learning_rate) in model.method.own_networks().items()
        }
        model.method.optimizers = self.method_optimizers

    def make_steps(self) -> Steps:
        config = self.config
        trainer = recboles_trainer(config["MODEL_TYPE"], config["backbone"])
        if trainer is not Trainer:
            raise GuiderError(
                f"denoising is {config.denoising_settings.method}: {config['backbone']} has a trainer of its own "
                f"({trainer.__name__}), which a method cannot change."
            )
        return Steps(config, self.model, trainer, parameters=self.model.jointly_trained())

    def begin(self, train_data: Any, valid_data: Any, verbose: bool, show_progress: bool) -> None:
        dataset = train_data.dataset
        expected = len(self.model.method.context.users)
        if len(dataset.inter_feat) != expected:
            raise GuiderError(
                f"the model was made for {expected} training interactions and the loader has "
                f"{len(dataset.inter_feat)}: use the data set it was made with."
            )
        dataset.inter_feat.update(Interaction({INTERACTION: torch.arange(expected)}))

    def train_epoch(self, train_data: Any, epoch: int, show_progress: bool) -> Any:
        self.model.method.begin_epoch(epoch)
        losses = super().train_epoch(train_data, epoch, show_progress)
        self.model.method.end_epoch(epoch)
        return losses

    def extra_state(self) -> dict[str, Any]:
        return {name: optimizer.state_dict() for name, optimizer in self.method_optimizers.items()}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        for name, optimizer in self.method_optimizers.items():
            optimizer.load_state_dict(state[name])
