"""What a model keeps beside its parameters: taken back where a loss is computed twice, and saved with checkpoints."""

from __future__ import annotations

import random
import zlib
from collections.abc import Collection, Iterator, Mapping
from typing import Any, TypeAlias

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor, nn

#: What lasts beyond a batch although it has no value at first (NCL's clusters). Other attributes that begin as None are
#: taken for what a batch or an evaluation leaves behind.
_MADE_LATER = {"user_centroids", "user_2cluster", "item_centroids", "item_2cluster"}
#: Data as large as the training part, which GUIDER weights and subsamples by what it saves itself.
_DATA = {"history_item_value", "history_item_matrix"}

#: The key that tells what a stored array or matrix was.
_KIND = "kind of array"

#: Attributes by name, by the path of the module that has them.
PlainState: TypeAlias = dict[str, dict[str, Any]]


class Snapshot:
    """Everything that a call of a model's loss may change but for parameters: generators, attributes, buffers.

    Args:
        model: what the loss is of.
        changing: the ids of the tensors among its attributes that a loss changes in place, as :meth:`changed` told
            earlier; None: any of them may be. What is not saved with a model may be as large as the training data.
    """

    def __init__(self, model: nn.Module, changing: Collection[int] | None = None) -> None:
        self.python, self.numpy, self.torch = random.getstate(), np.random.get_state(), torch.get_rng_state()
        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        self.cuda = (device, torch.cuda.get_rng_state(device)) if device.type == "cuda" else None
        # attributes by reference, and the entries of those that are dicts
        self.dicts: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for module in model.modules():
            self.dicts.append((vars(module), dict(vars(module))))
            self.dicts += [(value, dict(value)) for value in vars(module).values() if isinstance(value, dict)]
        values = [value for _, entries in self.dicts for value in entries.values()]
        self.lists = [(value, list(value)) for value in values if isinstance(value, list)]
        self.arrays = [(value, value.copy()) for value in values if isinstance(value, np.ndarray)]
        self.generators = [(value, value.get_state()) for value in values if isinstance(value, torch.Generator)]
        self.buffers = [(buffer, buffer.detach().clone()) for buffer in _saved_buffers(model)]
        self.tensors = [
            (value, value._version, value.clone() if changing is None or id(value) in changing else None)
            for value in _own_tensors(model, values)
        ]

    def changed(self) -> set[int]:
        """The ids of the tensors among the attributes that have been changed in place since."""
        return {id(tensor) for tensor, version, _ in self.tensors if tensor._version != version}

    def restore(self) -> None:
        """Let everything be as it was."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch)
        if self.cuda is not None:
            device, state = self.cuda
            torch.cuda.set_rng_state(state, device)
        for target, entries in self.dicts:
            target.clear()
            target.update(entries)
        for one, elements in self.lists:
            one[:] = elements
        for array, copied in self.arrays:
            array[...] = copied
        for generator, state in self.generators:
            generator.set_state(state)
        with torch.no_grad():
            for buffer, values in self.buffers:
                if not torch.equal(buffer, values):
                    buffer.copy_(values)
            for tensor, version, before in self.tensors:
                if before is not None and tensor._version != version:
                    tensor.copy_(before)


class PlainAttributes:
    """The numbers, lists of numbers, arrays and tensors among a model's attributes that training moves on.

    Some of RecBole's models count their batches in an attribute (MultiVAE), or record their losses (DiffRec). What
    ``state_dict`` holds is left out, and so are graphs, and caches that begin as None.

    Args:
        model: as it was made.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._start = {place: _mark(value) for place, value in self._values()}

    def changed(self) -> PlainState:
        """Those that are not what they were at first."""
        state: PlainState = {}
        for (path, name), value in self._values():
            start = self._start.get((path, name))
            mark = _mark(value)
            if name in _MADE_LATER or (start is not None and start[0] is mark[0] and _differ(start[1], mark[1])):
                state.setdefault(path, {})[name] = value
        return state

    def restore(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Take back what :meth:`changed` gave, as a checkpoint holds it."""
        modules = dict(self.model.named_modules())
        for path, values in state.items():
            for name, value in values.items():
                current = vars(modules[path])[name]
                if isinstance(current, np.ndarray):
                    value = value.cpu().numpy()
                # in place: others may hold the same array
                if isinstance(current, (np.ndarray, Tensor)) and current.shape == value.shape:
                    current[...] = value
                else:
                    setattr(modules[path], name, value)

    def _values(self) -> Iterator[tuple[tuple[str, str], Any]]:
        held = _storages([*self.model.parameters(), *self.model.buffers()])
        for path, module in self.model.named_modules():
            for name, value in vars(module).items():
                if name == "training" or name in _DATA or not _is_plain(value):
                    continue
                if not isinstance(value, Tensor) or value.untyped_storage().data_ptr() not in held:
                    yield (path, name), value


def stored_parameters(value: Any) -> Any:
    """What a model gives as its ``other_parameter``, as plain data and tensors: EASE and ItemKNN have arrays there, and
    sparse matrices. :func:`loaded_parameters` is the way back."""
    if isinstance(value, Mapping):
        return {key: stored_parameters(entry) for key, entry in value.items()}
    if isinstance(value, np.ndarray):
        return {_KIND: "array", "values": torch.from_numpy(np.array(value))}
    if sp.issparse(value):
        rows = value.tocsr()
        parts = {name: torch.from_numpy(np.array(getattr(rows, name))) for name in ("data", "indices", "indptr")}
        return {_KIND: value.format, "shape": list(value.shape), **parts}
    return value


def loaded_parameters(value: Any) -> Any:
    """What :func:`stored_parameters` was given."""
    if not isinstance(value, Mapping):
        return value
    if _KIND not in value:
        return {key: loaded_parameters(entry) for key, entry in value.items()}
    if value[_KIND] == "array":
        return value["values"].cpu().numpy()
    parts = tuple(value[name].cpu().numpy() for name in ("data", "indices", "indptr"))
    return sp.csr_matrix(parts, shape=tuple(value["shape"])).asformat(value[_KIND])


def _saved_buffers(model: nn.Module) -> Iterator[Tensor]:
    """The buffers that are saved with a model. They are copied whenever a loss may change them: batch normalisation
    does, and torch does not count it."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield buffer


def _own_tensors(model: nn.Module, values: Collection[Any]) -> list[Tensor]:
    """The tensors beside parameters and saved buffers that are no views of these and have no gradient."""
    held = _storages([*model.parameters(), *_saved_buffers(model)])
    tensors = [value for value in values if isinstance(value, Tensor) and _is_simple(value)]
    return [tensor for tensor in tensors if tensor.untyped_storage().data_ptr() not in held]


def _storages(tensors: list[Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.layout is torch.strided}


def _is_simple(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.requires_grad and not tensor.is_inference()


def _is_plain(value: Any) -> bool:
    if isinstance(value, Tensor):
        return _is_simple(value)
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biuf"
    if isinstance(value, list):
        return all(isinstance(one, (int, float, np.number)) for one in value)
    return isinstance(value, (int, float, np.number))


def _mark(value: Any) -> tuple[type, Any]:
    """What tells later whether a value has changed, without a copy of what may be large; and its kind."""
    if isinstance(value, Tensor):
        return Tensor, (value, value._version)
    if isinstance(value, np.ndarray):
        return np.ndarray, zlib.crc32(value.tobytes())
    return (list, list(value)) if isinstance(value, list) else (float, value)


def _differ(start: Any, now: Any) -> bool:
    if isinstance(start, tuple):
        return start[0] is not now[0] or bool(start[1] != now[1])
    return bool(start != now)
