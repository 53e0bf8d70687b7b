"""Sparse graphs of users and items: normalised adjacency, blockwise kNN graphs, fast propagation.

Everything that a graph recommender multiplies by is a :class:`SparseOperator`: a CSR matrix whose backward
pass is another CSR product (by itself where it is symmetric), never torch's slow sparse-COO backward. A whole
LightGCN propagation is one linear map, so :func:`propagate_mean` runs it as one autograd node that keeps no
intermediate layer.

Shapes: n_users users and n_items items, ids from 0; a bipartite graph has N = n_users + n_items nodes, users
first.

    operator.py    the sparse matrix, and propagation with it
    bipartite.py   graphs from interactions
    edges.py       edges whose weights are learned
    neighbours.py  graphs from the features of items; sums and unions of graphs
"""

from recbole_guider.graph.bipartite import (
    BipartiteGraph,
    bipartite_adjacency,
    co_occurrence,
    mean_adjacency,
    prune_by_degree,
    user_item_block,
)
from recbole_guider.graph.edges import Edges
from recbole_guider.graph.neighbours import (
    agreeing_knn_graphs,
    combine,
    knn_graph,
    shrunk_cosine_graph,
    softmax_rows,
    union,
)
from recbole_guider.graph.operator import (
    DEGREE_EPSILON,
    SparseOperator,
    degree_normalised,
    propagate,
    propagate_mean,
)

__all__ = [
    "DEGREE_EPSILON",
    "BipartiteGraph",
    "Edges",
    "SparseOperator",
    "agreeing_knn_graphs",
    "bipartite_adjacency",
    "co_occurrence",
    "combine",
    "degree_normalised",
    "knn_graph",
    "mean_adjacency",
    "propagate",
    "propagate_mean",
    "prune_by_degree",
    "shrunk_cosine_graph",
    "softmax_rows",
    "union",
    "user_item_block",
]
