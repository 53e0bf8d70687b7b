"""Graph propagation and construction: this package against torch's COO, a stack of layers, RecBole and a dense kNN.

    OMP_NUM_THREADS=1 python benchmarks/graph.py [--users 19445 --items 7050 --pairs 118551 --dim 64 --layers 2]

The defaults are the size of Amazon Baby. Prints markdown tables; times are medians.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from measure import milliseconds, peak_megabytes, table

from recbole_guider.graph import BipartiteGraph, bipartite_adjacency, knn_graph, propagate_mean


def pairs(n_users: int, n_items: int, n_pairs: int) -> tuple[np.ndarray, np.ndarray]:
    """Distinct pairs with a long tail on both sides."""
    rng = np.random.default_rng(0)
    drawn = 2 * n_pairs
    users = (n_users * rng.random(drawn) ** 1.5).astype(np.int64)
    items = (n_items * rng.random(drawn) ** 2.5).astype(np.int64)
    key = rng.permutation(np.unique(users * n_items + items))[:n_pairs]
    return np.divmod(key, n_items)


def dense_knn(features: torch.Tensor, k: int) -> torch.Tensor:
    """The whole n x n similarity at once."""
    unit = features / features.norm(dim=1, keepdim=True)
    return torch.topk(unit @ unit.T, k, dim=1).indices


def knn_call(kind: str, n: int, dim: int, k: int) -> Callable[[], Any]:
    features = torch.randn(n, dim, generator=torch.Generator().manual_seed(0))
    knn_graph(features[:50], 2)  # the libraries' own workspaces do not count
    return (lambda: dense_knn(features, k)) if kind == "dense" else (lambda: knn_graph(features, k))


def propagation_call(kind: str, arguments: tuple[int, int, int], dim: int, layers: int) -> Callable[[], Any]:
    n_users, n_items, n_pairs = arguments
    op = bipartite_adjacency(*pairs(n_users, n_items, n_pairs), n_users, n_items)
    coo = op.csr.to_sparse_coo().coalesce()
    x = torch.randn(n_users + n_items, dim, requires_grad=True)
    gradient = torch.randn(n_users + n_items, dim)

    def stacked(product: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        found = [x]
        for _ in range(layers):
            found.append(product(found[-1]))
        return torch.stack(found, 1).mean(1)

    forward = {
        "torch COO, stack": lambda: stacked(lambda h: torch.sparse.mm(coo, h)),
        "torch CSR, stack": lambda: stacked(lambda h: torch.sparse.mm(op.csr, h)),
        "operator, stack": lambda: stacked(lambda h: op @ h),
        "propagate_mean": lambda: propagate_mean(op, x, layers),
    }[kind]

    def call() -> None:
        x.grad = None
        forward().backward(gradient)

    return call


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=19445)
    parser.add_argument("--items", type=int, default=7050)
    parser.add_argument("--pairs", type=int, default=118551)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--features", type=int, default=384, help="dimension of the item features")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--repeat", type=int, default=10)
    args = parser.parse_args()

    size = (args.users, args.items, args.pairs)
    print(
        f"{args.users} users, {args.items} items, {args.pairs} pairs, d = {args.dim}, {args.layers} layers, ",
        end="",
    )
    print(f"{torch.get_num_threads()} thread(s)\n")

    kinds = ["torch COO, stack", "torch CSR, stack", "operator, stack", "propagate_mean"]
    times = [milliseconds(propagation_call(kind, size, args.dim, args.layers), args.repeat) for kind in kinds]
    peaks = [peak_megabytes(propagation_call, kind, size, args.dim, args.layers) for kind in kinds]
    rows = [
        [kind, f"{ms:.1f}", f"{times[0] / ms:.1f}", f"{mb:.0f}"]
        for kind, ms, mb in zip(kinds, times, peaks, strict=True)
    ]
    print(table(["forward and backward", "ms", "times faster", "peak MB"], rows), "\n")

    users, items = pairs(*size)
    graph = BipartiteGraph(users, items, args.users, args.items)
    generator = torch.Generator().manual_seed(0)
    from recbole.model.general_recommender.lightgcn import LightGCN

    matrix = sp.coo_matrix((np.ones(args.pairs, np.float32), (users, items)), (args.users, args.items))
    inputs = SimpleNamespace(n_users=args.users, n_items=args.items, interaction_matrix=matrix)
    builds: list[tuple[str, Callable[[], Any]]] = [
        ("RecBole's get_norm_adj_mat", lambda: LightGCN.get_norm_adj_mat(inputs)),
        (
            "bipartite_adjacency, unsorted pairs",
            lambda: bipartite_adjacency(users, items, args.users, args.items),
        ),
        ("BipartiteGraph.adjacency", graph.adjacency),
        ("BipartiteGraph.prune, 20% kept", lambda: graph.prune(0.2, generator)),
        ("BipartiteGraph.prune, 90% kept", lambda: graph.prune(0.9, generator)),
    ]
    times = [milliseconds(call, 3 if i == 0 else args.repeat) for i, (_, call) in enumerate(builds)]
    rows = [[name, f"{ms:.1f}", f"{times[0] / ms:.0f}"] for (name, _), ms in zip(builds, times, strict=True)]
    print(table(["building an adjacency", "ms", "times faster"], rows), "\n")

    rows = []
    for kind in ("dense", "blockwise"):
        arguments = (kind, args.items, args.features, args.k)
        ms = milliseconds(knn_call(*arguments), 3)
        rows.append(
            [
                f"{kind}, {args.items} x {args.features}",
                f"{ms:.0f}",
                f"{peak_megabytes(knn_call, *arguments):.0f}",
            ]
        )
    print(table([f"kNN graph, k = {args.k}", "ms", "peak MB"], rows))


if __name__ == "__main__":
    main()
