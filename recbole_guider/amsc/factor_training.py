"""Learning :class:`~recbole_guider.amsc.factors.Factors` by gradient descent.

A module of its own, since it needs torch: processes that only predict do without.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding, normalize

from recbole_guider.amsc.factors import Factors
from recbole_guider.amsc.folds import UserFolds
from recbole_guider.utils.interactions import IntArray, InteractionIndex
from recbole_guider.utils.threads import one_thread

DIMENSION = 64
#: Divides the cosines of the softmax.
TEMPERATURE = 0.7
#: Passes over the pairs; fewer where there are more than VISITS / EPOCHS pairs.
EPOCHS = 10
#: About the largest number of pairs that are looked at for one fold of the users, repetitions included.
VISITS = 1_000_000
LEARNING_RATE = 0.01
#: Pairs in a batch of whole users, and negatives that they share.
BATCH, NEGATIVES = 4096, 512
_INITIAL_SPREAD = 0.1


def learn_factors(
    profiles: InteractionIndex,
    folds: UserFolds,
    item_degree: IntArray,
    content: NDArray[np.floating] | None,
    by_item: bool,
    rng: np.random.Generator,
) -> Factors:
    """Context and target rows for every fold of the users from the interactions of the others.

        q_i = a_i + x_i W,    t_i = b_i + x_i W',    r_u = sum of q over I_u without i
        loss = - mean over (u, i) of log( e_i / (e_i + sum of e_j) ),    e_i = exp(cos(r_u, t_i) / tau)

    with negatives j drawn by popularity, as the null pairs are: what is learned is which item fits, not which is
    popular. Adam, batches of whole users. Without ``by_item`` there are no a and b: the score is then a function of the
    content alone.

    Args:
        folds: which fold a user lies in.
        item_degree: int64 [n_items], the popularity that negatives are drawn by.
        content: float [n_items, d], x; None for items told apart by their users alone.
        by_item: whether items have rows of their own, a_i and b_i.
        rng: starts a generator for each fold.
    """
    fold = folds(profiles.user_keys)
    x = None
    if content is not None:
        length = float(np.linalg.norm(content, axis=1).mean())
        x = torch.from_numpy(np.asarray(content / max(length, 1e-12), dtype=np.float32))
    popularity = np.cumsum(item_degree, dtype=np.float64)
    context, target = [], []
    with one_thread():
        for k in range(folds.count):
            seeds = rng.integers(2**63, size=2)
            users = np.flatnonzero((fold != k) & (profiles.size > 1))
            model = _Model(profiles.n_items, x, by_item, torch.Generator().manual_seed(int(seeds[0])))
            model.fit(sp.csr_matrix(profiles.matrix[users]), popularity, np.random.default_rng(int(seeds[1])))
            of_context, of_target = model.rows(torch.arange(profiles.n_items))
            context.append(of_context.numpy())
            target.append(normalize(of_target, dim=1).numpy())
    return Factors(folds, context, target)


class _Model:
    def __init__(self, n_items: int, content: Tensor | None, by_item: bool, generator: torch.Generator) -> None:
        def drawn(*shape: int) -> Tensor:
            return (torch.randn(shape, generator=generator) * _INITIAL_SPREAD).requires_grad_()

        self.content = content
        self.of_items = [drawn(n_items, DIMENSION) for _ in range(2)] if by_item else []
        self.maps = [drawn(content.shape[1], DIMENSION) for _ in range(2)] if content is not None else []

    def _rows(self, side: int, items: Tensor) -> Tensor:
        rows = torch.zeros(len(items), DIMENSION)
        if self.of_items:
            rows = embedding(items, self.of_items[side], sparse=True)
        if self.content is not None:
            rows = rows + self.content[items] @ self.maps[side]
        return rows

    @torch.no_grad()
    def rows(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Context and target rows, float32 [len(items), d]."""
        return self._rows(0, items), self._rows(1, items)

    def fit(self, matrix: sp.csr_matrix, popularity: NDArray[np.float64], rng: np.random.Generator) -> None:
        """Learn from the profiles in ``matrix`` (float64 CSR, two items a row at least)."""
        # Adam for items that a batch holds, and only for them: a step costs what the batch does, not the catalogue.
        optimisers: list[torch.optim.Optimizer] = []
        if self.of_items:
            optimisers.append(torch.optim.SparseAdam(self.of_items, lr=LEARNING_RATE))
        if self.maps:
            optimisers.append(torch.optim.Adam(self.maps, lr=LEARNING_RATE))
        left = VISITS
        for _ in range(EPOCHS):
            for users in _batches(matrix, rng):
                if left <= 0 or not optimisers:
                    return
                profiles = sp.csr_matrix(matrix[users])
                # popularity is a cumulative sum: the drawn places lie between its steps
                places = rng.random(NEGATIVES) * popularity[-1]
                negatives = torch.from_numpy(np.searchsorted(popularity, places, side="right"))
                loss = self._loss(profiles, negatives)
                for optimiser in optimisers:
                    optimiser.zero_grad()
                loss.backward()
                for optimiser in optimisers:
                    optimiser.step()
                left -= profiles.nnz

    def _loss(self, profiles: sp.csr_matrix, negatives: Tensor) -> Tensor:
        distinct, place = np.unique(profiles.indices, return_inverse=True)
        items, at = torch.from_numpy(distinct.astype(np.int64)), torch.from_numpy(place)
        of_pair = torch.from_numpy(np.repeat(np.arange(profiles.shape[0]), np.diff(profiles.indptr)))
        context = self._rows(0, items)[at]
        total = torch.zeros(profiles.shape[0], DIMENSION).index_add(0, of_pair, context)
        rest = normalize(total[of_pair] - context, dim=1)
        own = (rest * normalize(self._rows(1, items), dim=1)[at]).sum(dim=1, keepdim=True)
        others = rest @ normalize(self._rows(1, negatives), dim=1).T
        return -torch.log_softmax(torch.cat([own, others], dim=1) / TEMPERATURE, dim=1)[:, 0].mean()


def _batches(matrix: sp.csr_matrix, rng: np.random.Generator) -> Iterator[IntArray]:
    """The rows in random order, about BATCH entries at a time."""
    order = rng.permutation(matrix.shape[0])
    batch = np.cumsum(np.diff(matrix.indptr)[order]) // BATCH
    yield from np.split(order, np.flatnonzero(np.diff(batch)) + 1) if len(order) else ()
