"""Averages of half-precision weights, which would round small steps away."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace

import torch
from torch import Tensor

CHUNK = 2**17
"""Weights that are converted to float32 at a time: few enough for a CPU's cache."""


class PlainAverage:
    """An average of weights in their own precision: each update rounds to it. Enough for float32, and for hard updates.

    In bfloat16 a step of less than 1/256 of a weight would be lost, so subclasses keep another tensor per weight.

    Args:
        device: device of these tensors; None follows the weights.

    Attributes:
        kept: the tensors, as attributes by the weight's name with / for its dots.
    """

    def __init__(self, device: str | None = None) -> None:
        self.device, self.kept = device, SimpleNamespace()

    def kept_dtype(self, dtype: torch.dtype) -> torch.dtype | None:
        """Return the precision of the tensor kept for a weight of this precision; None for no tensor."""
        return None

    @torch.no_grad()
    def begin(self, weights: Mapping[str, Tensor]) -> None:
        """Allocate the tensors that the weights need, and keep those that are there already."""
        for name, weight in weights.items():
            kept, dtype = self.of(name), self.kept_dtype(weight.dtype)
            if dtype is None:
                vars(self.kept).pop(_path(name), None)
            else:
                kept = kept if kept is not None and kept.dtype == dtype else self.first(weight)
                vars(self.kept)[_path(name)] = kept.to(self.device or weight.device)

    def first(self, weight: Tensor) -> Tensor:
        """Return the first tensor kept for a weight: its value."""
        return weight.detach().to(self.device, self.kept_dtype(weight.dtype))

    def move(self, weight: Tensor, kept: Tensor | None, goal: Tensor, alpha: float) -> None:
        """Move a weight towards a goal on any device, in the precision of the tensor kept for it, if there is one."""
        average = weight if kept is None else kept
        lerp([average], [goal.to(average)], alpha)
        if kept is not None:
            weight.copy_(kept)

    def of(self, name: str) -> Tensor | None:
        """Return the tensor kept for a weight, by the weight's name."""
        return vars(self.kept).get(_path(name))

    def allocate(self, state: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Allocate tensors like those of a state, by their paths in `kept`, to load it into."""
        kept, weights = self.kept, {_path(name): weight for name, weight in weights.items()}
        self.kept = SimpleNamespace()
        for path, value in state.items():
            if path in weights:
                old = vars(kept).get(path)
                new = torch.empty_like(weights[path], dtype=value.dtype, device=self.device)
                vars(self.kept)[path] = new if old is None or old.dtype != value.dtype else old

    def _apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        if self.device is None:
            self.kept = SimpleNamespace(**{path: moved(kept, fn) for path, kept in vars(self.kept).items()})


class MasterWeights(PlainAverage):
    """Float32 master weights of bfloat16 or float16 ones, 4 more bytes per weight."""

    def kept_dtype(self, dtype: torch.dtype) -> torch.dtype | None:
        """Return float32 for half precisions."""
        return torch.float32 if dtype in (torch.bfloat16, torch.float16) else None


class LowOrderBits(MasterWeights):
    """The low-order 16 bits of a float32 average of bfloat16 weights, 2 more bytes per weight.

    float16 is not the upper half of float32: its weights get float32 master weights.
    """

    def kept_dtype(self, dtype: torch.dtype) -> torch.dtype | None:
        """Return int16 for bfloat16."""
        return torch.int16 if dtype == torch.bfloat16 else super().kept_dtype(dtype)

    def first(self, weight: Tensor) -> Tensor:
        """Return zeros for bfloat16."""
        if weight.dtype == torch.bfloat16:
            return torch.zeros_like(weight, dtype=torch.int16)
        return super().first(weight)

    def move(self, weight: Tensor, kept: Tensor | None, goal: Tensor, alpha: float) -> None:
        """Move the average that a weight and its low-order bits make up."""
        if kept is None or kept.dtype != torch.int16:
            super().move(weight, kept, goal, alpha)
        elif alpha == 1 and goal.dtype == weight.dtype:
            weight.copy_(goal)
            kept.zero_()
        else:
            _lerp_bits(weight, kept, goal, alpha)


def lerp(targets: list[Tensor], goals: list[Tensor], weight: float) -> None:
    """Move tensors of one precision and device, in one fused kernel if the device has it."""
    if weight == 1:
        torch._foreach_copy_(targets, goals)
    else:
        torch._foreach_lerp_(targets, goals, weight)


def _lerp_bits(upper: Tensor, lower: Tensor, goal: Tensor, weight: float) -> None:
    """Move a bfloat16 tensor with its low-order bits, in chunks of rows."""
    upper, lower, goal = (torch.atleast_1d(tensor) for tensor in (upper, lower, goal))
    count = CHUNK if upper.device.type == "cpu" else 256 * CHUNK
    rows = max(count * len(upper) // max(upper.numel(), 1), 1)
    for high, low, end in zip(upper.split(rows), lower.split(rows), goal.split(rows), strict=True):
        value = high.float()
        bits = value.view(torch.int32)
        bits += low
        value.lerp_(end.to(value), weight)
        bits.clamp_(max=2**31 - 2**15 - 1)  # what is above is NaN, and stays so
        low.copy_(bits)  # the lower 16, from -2**15 to 2**15 - 1: the others are the nearest bfloat16 above or below
        high.view(torch.int16).copy_(bits.add_(2**15).bitwise_right_shift_(16))


def moved(tensor: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a tensor in its own precision on the device that `fn` moves tensors to."""
    return tensor.to(fn(tensor.new_empty(0)).device)


def _path(name: str) -> str:
    return name.replace(".", "/")
