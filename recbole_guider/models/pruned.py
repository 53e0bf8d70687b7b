"""The base of the models that train on a user-item graph which is pruned anew in every epoch."""

from __future__ import annotations

from typing import Any

from recbole_guider.graph import BipartiteGraph, SparseOperator
from recbole_guider.models.base import FactorisedRecommender


class PrunedGraphRecommender(FactorisedRecommender):
    """A factorised recommender with the user-item graph of the training interactions.

    In every training epoch a share ``dropout`` of the edges is left out and the rest normalised by its own degrees;
    evaluation uses all edges. A subclass may choose the edges otherwise (:meth:`prune`).

    Settings: ``dropout``.

    Raises:
        GuiderError: ``dropout`` is no share below 1.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self.dropout: float = config["dropout"]
        self.edges = BipartiteGraph(*self.training_pairs(dataset))
        self.graph = self.edges.adjacency().to(self.device)
        self._training_graph: SparseOperator | None = self.graph
        self.generator("pruning", config["seed"])

    def renew(self) -> None:
        # Drawn when first needed, so that an epoch of GUIDER, which begins with two passes, still draws exactly one.
        self._training_graph = None

    def training_graph(self) -> SparseOperator:
        """This epoch's pruned user-item graph (all edges where ``dropout`` is 0)."""
        if self._training_graph is None:
            self._training_graph = self.graph if self.dropout == 0 else self.prune().to(self.device)
        return self._training_graph

    def prune(self) -> SparseOperator:
        """A new pruned graph: edge (u, i) kept with probability proportional to ``1 / sqrt(d_u d_i)``."""
        return self.edges.prune(1.0 - self.dropout, self.generator("pruning"))

    @property
    def current_graph(self) -> SparseOperator:
        """What to propagate on: this epoch's graph in training mode, all edges in evaluation mode."""
        return self.training_graph() if self.training else self.graph
