"""What a batch is made of: objects whose tensors go to another process, or to a device, together."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

ALIGNMENT = 16
"""Bytes: each tensor begins at a multiple of it in a buffer of several."""


class ByValue:
    """Is pickled as arrays: a batch is small, and shared memory takes 0.2 ms per tensor."""

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes, tensors as arrays."""
        return {name: value.numpy() if _is_on_cpu(value) else value for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the attributes back."""
        for name, value in state.items():
            setattr(self, name, torch.from_numpy(value) if isinstance(value, np.ndarray) else value)

    def tensors(self) -> Iterator[Tensor]:
        """Yield its tensors, and those of its parts."""
        for value in vars(self).values():
            if isinstance(value, ByValue):
                yield from value.tensors()
            elif isinstance(value, Tensor):
                yield value

    def to(self, device: torch.device | str, **kwargs: Any) -> Self:
        """Return it on a device: one copy of all its tensors, from pinned memory, which nothing waits for on CUDA."""
        tensors, device = list(self.tensors()), torch.device(device)
        if all(one.device == device for one in tensors):
            return self
        return self._with(iter(moved(tensors, device)))

    def _with(self, tensors: Iterator[Tensor]) -> Self:
        """Return it with other tensors, in the order of `tensors`."""
        values = {
            name: value._with(tensors) if isinstance(value, ByValue) else next(tensors)
            for name, value in vars(self).items()
            if isinstance(value, ByValue | Tensor)
        }
        return self._replaced(values)

    def _replaced(self, values: Mapping[str, Any]) -> Self:
        return replace(self, **values)  # type: ignore[type-var]


def _is_on_cpu(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cpu"


def moved(tensors: list[Tensor], device: torch.device) -> list[Tensor]:
    """Return tensors on another device as parts of one buffer, which one copy has brought there."""
    source, pinned = tensors[0].device, device.type == "cuda" and tensors[0].device.type == "cpu"
    sizes = [-(-one.nbytes // ALIGNMENT) * ALIGNMENT for one in tensors]
    buffer = torch.empty(sum(sizes), dtype=torch.uint8, device=source, pin_memory=pinned)
    for view, one in zip(_views(buffer, sizes, tensors), tensors, strict=True):
        view.copy_(one)
    return _views(buffer.to(device, non_blocking=pinned), sizes, tensors)


def _views(buffer: Tensor, sizes: list[int], like: list[Tensor]) -> list[Tensor]:
    """Return parts of a buffer with the shapes and types of some tensors."""
    parts = zip(buffer.split(sizes), like, strict=True)
    return [part[: one.nbytes].view(one.dtype).view(one.shape) for part, one in parts]
