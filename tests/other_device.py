"""A second device with real values, for tests of what would fail on a GPU where there is none.

Its tensors live on the CPU but say that they are elsewhere. As on CUDA, an operation that mixes them with the CPU's
raises (but for numbers, and for indices and copies), so does drawing with a generator of the CPU, and there is no
``numpy()``. Sparse products, which torch cannot wrap, are checked and computed here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

import recbole_guider.graph.edges as edges_module
import recbole_guider.graph.operator as operator_module

DEVICE = torch.device("lazy:0")  # a type that torch knows and that no machine has
_COPIES = {torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default}
_INDEXED = {
    torch.ops.aten.index.Tensor, torch.ops.aten.index_put.default, torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
}


class Elsewhere(torch.Tensor):
    """A strided tensor of the other device."""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> Elsewhere:
        wrapper = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), dtype=here.dtype, device=DEVICE
        )
        wrapper.here = here
        return wrapper

    def untyped_storage(self) -> Any:
        address = self.here.untyped_storage().data_ptr()
        return SimpleNamespace(data_ptr=lambda: address)

    def tolist(self) -> Any:
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


class _Everywhere(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})


def _is_elsewhere(device: Any) -> bool:
    return device is not None and torch.device(device).type == DEVICE.type


def _call(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = tree_leaves((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    there = any(isinstance(tensor, Elsewhere) for tensor in tensors)
    here = [tensor for tensor in tensors if not isinstance(tensor, Elsewhere)]
    if there and func in _INDEXED:
        # indices may be the CPU's; what is indexed, and what is put there, may not
        here = [args[0], *(leaf for leaf in args[2:] if isinstance(leaf, torch.Tensor))]
        here = [tensor for tensor in here if not isinstance(tensor, Elsewhere)]
    if there and func not in _COPIES and any(tensor.dim() for tensor in here):
        raise RuntimeError(f"Expected all tensors to be on the same device in {func}")
    device = kwargs.get("device")
    if any(isinstance(leaf, torch.Generator) for leaf in leaves) and (there or _is_elsewhere(device)):
        raise RuntimeError(f"Expected a generator of the other device in {func}")
    if device is not None:
        there = _is_elsewhere(device)
    moved_args, moved_kwargs = tree_map(_to_here, (args, kwargs))
    with _disable_current_modes():
        result = func(*moved_args, **moved_kwargs)
        if func is torch.ops.aten._to_copy.default and result is moved_args[0]:
            result = result.clone()
        if func is torch.ops.aten._conj.default:  # a wrapper cannot say that its values are yet to be conjugated
            result = torch.ops.aten.conj_physical.default(moved_args[0])
    same = {id(leaf.here): leaf for leaf in leaves if isinstance(leaf, Elsewhere)}

    def back(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not there or func is torch.ops.aten._local_scalar_dense.default:
            return leaf
        return same.get(id(leaf)) if id(leaf) in same else Elsewhere(leaf)  # in place: the same object

    return tree_map(back, result)


def _to_here(leaf: Any) -> Any:
    if isinstance(leaf, Elsewhere):
        return leaf.here
    return torch.device("cpu") if isinstance(leaf, torch.device) and leaf.type == DEVICE.type else leaf


class _Csr:
    """A CSR matrix of either device, which multiplies what lies there."""

    def __init__(self, *parts: Any) -> None:
        *arrays, shape = parts
        if len({isinstance(array, Elsewhere) for array in arrays}) > 1:
            raise RuntimeError("Expected all parts of a CSR matrix to be on the same device")
        self.there = isinstance(arrays[0], Elsewhere)
        with _disable_current_modes():
            self.matrix = _csr_tensor(*map(_to_here, arrays), shape)

    def _apply(self, function: Any, *dense: torch.Tensor) -> torch.Tensor:
        if any(isinstance(each, Elsewhere) is not self.there for each in dense):
            raise RuntimeError("Expected a sparse and a dense matrix on the same device")
        with _disable_current_modes():
            result = function(*map(_to_here, dense))
        return Elsewhere(result) if self.there else result

    def __matmul__(self, dense: torch.Tensor) -> torch.Tensor:
        return self._apply(lambda x: self.matrix @ x, dense)


_csr_tensor = operator_module.csr_tensor
_addmm, _sampled_addmm, _autocast = torch.addmm, torch.sparse.sampled_addmm, torch.autocast


def _add_product(added: torch.Tensor, matrix: Any, dense: torch.Tensor, **options: Any) -> torch.Tensor:
    if not isinstance(matrix, _Csr):
        return _addmm(added, matrix, dense, **options)
    return matrix._apply(lambda x, y: _addmm(x, matrix.matrix, y, **options), added, dense)


def _sampled_product(matrix: Any, left: torch.Tensor, right: torch.Tensor, **options: Any) -> Any:
    if not isinstance(matrix, _Csr):
        return _sampled_addmm(matrix, left, right, **options)
    values = matrix._apply(lambda x, y: _sampled_addmm(matrix.matrix, x, y, **options).values(), left, right)
    return SimpleNamespace(values=lambda: values)


def _no_autocast(device_type: str, *arguments: Any, **options: Any) -> Any:
    return nullcontext() if device_type == DEVICE.type else _autocast(device_type, *arguments, **options)


@contextmanager
def other_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[torch.device]:
    """Within this context there is another device."""
    with monkeypatch.context() as patch:
        for module in (operator_module, edges_module):
            patch.setattr(module, "csr_tensor", _Csr)
        patch.setattr(torch, "addmm", _add_product)
        patch.setattr(torch.sparse, "sampled_addmm", _sampled_product)
        patch.setattr(torch, "autocast", _no_autocast)
        patch.setattr(torch, DEVICE.type, torch.cpu, raising=False)  # where torch looks for its streams and states
        before = torch.__future__.get_swap_module_params_on_conversion()
        # parameters become others where a module is moved: assigning their data would need the same kind of tensor
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            with _Everywhere():
                yield DEVICE
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)
