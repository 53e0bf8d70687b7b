"""SparseOperator and propagation against dense formulas and finite differences."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from small_graphs import N_ITEMS, N_USERS, lopsided

from recbole_guider.graph import SparseOperator, bipartite_adjacency, degree_normalised, propagate, propagate_mean
from recbole_guider.utils.errors import GuiderError


@pytest.mark.parametrize("n_layers", [0, 1, 2, 3])
def test_propagation_equals_the_dense_one(operator, n_layers):
    a, x = (
        operator.to_dense().double(),
        torch.randn(40, 5, generator=torch.Generator().manual_seed(0)).double(),
    )
    layers = [x]
    for _ in range(n_layers):
        layers.append(a @ layers[-1])
    op = operator.to(dtype=torch.float64)
    torch.testing.assert_close(propagate_mean(op, x, n_layers), torch.stack(layers).mean(0))
    torch.testing.assert_close(propagate(op, x, n_layers), layers[-1])
    torch.testing.assert_close(operator @ x.float(), (a @ x).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("symmetric", [True, False])
def test_gradients(operator, symmetric):
    op = operator.to(dtype=torch.float64)
    if not symmetric:
        op = SparseOperator.from_scipy(sp.random(9, 9, 0.3, random_state=3), dtype=torch.float64)
    x = torch.randn(op.shape[1], 2, dtype=torch.float64, requires_grad=True)
    for f in (lambda x: propagate_mean(op, x, 3), lambda x: propagate(op, x, 2), lambda x: op @ x):
        assert torch.autograd.gradcheck(f, (x,))
        assert torch.autograd.gradgradcheck(f, (x,))


def test_rectangular_gradient_and_transpose():
    op = lopsided()
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: op @ x, (x,))
    torch.testing.assert_close(op.T.to_dense(), op.to_dense().T)
    assert op.T.T is op


def test_gradient_that_is_not_contiguous(operator):
    x = torch.randn(40, 3, requires_grad=True)
    propagate_mean(operator, x, 2).sum().backward()  # an expanded gradient
    a = operator.to_dense()
    torch.testing.assert_close(
        x.grad, ((torch.eye(40) + a + a @ a) / 3).T @ torch.ones(40, 3), rtol=1e-5, atol=1e-6
    )


def test_input_type_and_autocast(operator):
    x = torch.randn(40, 3)
    assert (operator @ x.double()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(operator @ x, propagate(operator, x))
        torch.testing.assert_close(operator @ x, operator.to_dense().matmul(x).float(), rtol=0.02, atol=0.02)
        assert (operator @ x).dtype == torch.float32


def test_copies_are_equal(operator):
    for op in (operator, lopsided()):
        assert op.T.csr.shape == op.T.shape  # fills the caches
        for copied in (copy.deepcopy(op), pickle.loads(pickle.dumps(op))):
            assert torch.equal(copied.to_dense(), op.to_dense())
            assert torch.equal(copied.T.to_dense(), op.to_dense().T)
            assert copied.symmetric == op.symmetric
    assert operator.to("cpu") is operator


def test_no_warning_reaches_the_user(edges):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bipartite_adjacency(*edges, N_USERS, N_ITEMS) @ torch.ones(40, 2)


def test_operator_errors(operator):
    with pytest.raises(GuiderError, match="40 columns"):
        operator @ torch.ones(39, 2)
    with pytest.raises(GuiderError, match="square"):
        propagate_mean(lopsided(), torch.ones(7, 2), 1)
    with pytest.raises(GuiderError, match="n_layers"):
        propagate(operator, torch.ones(40, 2), -1)
    with pytest.raises(GuiderError, match="square"):
        SparseOperator(torch.zeros(3), torch.zeros(0), torch.zeros(0), (2, 3), symmetric=True)


def test_other_values_in_the_same_places_transpose_without_a_sort() -> None:
    pattern = lopsided(7, 5)
    values = torch.arange(1.0, pattern.nnz + 1, dtype=torch.float64)
    other = pattern.with_values(values)
    expected = sp.csr_matrix((values.numpy(), pattern.col.numpy(), pattern.crow.numpy()), shape=(7, 5)).toarray()
    np.testing.assert_array_equal(other.to_dense().numpy(), expected)
    np.testing.assert_array_equal(other.T.to_dense().numpy(), expected.T)
    assert other.transposition is pattern.transposition
    np.testing.assert_array_equal(pattern.rows.numpy(), np.repeat(np.arange(7), np.diff(pattern.crow.numpy())))


def test_degree_normalised_is_its_formula() -> None:
    dense = np.array([[0, 2, 1, 0], [2, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=np.float32)
    scale = (dense.sum(1) + 1e-7) ** -0.5
    got = degree_normalised(sp.csr_matrix(dense)).to_dense()
    np.testing.assert_allclose(got, scale[:, None] * dense * scale, rtol=1e-6)
