"""What a model keeps beside its parameters: taken back where a loss is computed twice."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Snapshot:
    """Everything that a call of a model's loss may change but for parameters: generators, attributes, buffers.

    Args:
        model: what the loss is of.
        changing: the ids of the tensors among its attributes that a loss changes in place, as :meth:`changed` told
            earlier; None: any of them may be. What is no parameter and no buffer may be as large as the training data.
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


def _saved_buffers(model: nn.Module) -> Iterator[Tensor]:
    """The buffers that are saved with a model; one that is not is a constant."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield buffer


def _own_tensors(model: nn.Module, values: Collection[Any]) -> list[Tensor]:
    """The tensors with storage of their own: no parameters or buffers, nor views of them, nor what has a gradient."""
    held = _storages([*model.parameters(), *model.buffers()])
    tensors = [value for value in values if isinstance(value, Tensor) and _is_simple(value)]
    return [tensor for tensor in tensors if tensor.untyped_storage().data_ptr() not in held]


def _storages(tensors: list[Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in tensors if tensor.layout is torch.strided}


def _is_simple(tensor: Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.requires_grad and not tensor.is_inference()
