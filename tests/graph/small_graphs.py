"""The sizes of the graph in ``conftest.py``, and a matrix that is not square."""

from __future__ import annotations

import scipy.sparse as sp
import torch

from recbole_guider.graph import SparseOperator

N_USERS, N_ITEMS = 23, 17


def lopsided(rows=11, columns=7, seed=1):
    return SparseOperator.from_scipy(sp.random(rows, columns, 0.4, random_state=seed), dtype=torch.float64)
