"""A graph of 23 users and 17 items with 90 edges."""

from __future__ import annotations

import numpy as np
import pytest
from small_graphs import N_ITEMS, N_USERS

from recbole_guider.graph import bipartite_adjacency


@pytest.fixture
def edges():
    rng = np.random.default_rng(0)
    key = rng.choice((N_USERS - 2) * N_ITEMS, 90, replace=False)  # the last two users have no edge
    return np.divmod(key, N_ITEMS)


@pytest.fixture
def operator(edges):
    return bipartite_adjacency(*edges, N_USERS, N_ITEMS)
