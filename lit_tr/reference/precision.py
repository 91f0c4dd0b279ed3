"""Averages of weights whose own precision would round small steps away."""

from collections.abc import Callable, Mapping
from types import SimpleNamespace

import torch
from torch import Tensor

CHUNK = 2**19
"""Weights that are held in float32 at a time: few enough to stay in a CPU's cache."""


class PlainAverage:
    """An average of weights in their own precision: each update rounds to it. Enough for float32, and for hard updates.

    In bfloat16 a step of less than 1/256 of a weight would be lost, so subclasses keep more beside the weights.

    Args:
        device: where that lies; None follows the weights.

    Attributes:
        kept: a tensor for each weight that needs one, as attributes by the weight's name with / for its dots.
    """

    def __init__(self, device: str | None = None) -> None:
        self.device, self.kept = device, SimpleNamespace()

    def kept_dtype(self, dtype: torch.dtype) -> torch.dtype | None:
        """Return the precision of what is kept beside weights of some precision; None if nothing is."""
        return None

    @torch.no_grad()
    def begin(self, weights: Mapping[str, Tensor]) -> None:
        """Keep what weights of this precision and device need; what is kept of them already goes on."""
        for name, weight in weights.items():
            held, dtype = self.of(name), self.kept_dtype(weight.dtype)
            if dtype is None:
                vars(self.kept).pop(_path(name), None)
            else:
                held = held if held is not None and held.dtype == dtype else self.first(weight)
                vars(self.kept)[_path(name)] = held.to(self.device or weight.device)

    def first(self, weight: Tensor) -> Tensor:
        """Return what is kept beside a weight at the start: its value."""
        return weight.detach().to(self.device, self.kept_dtype(weight.dtype))

    def move(self, weight: Tensor, kept: Tensor | None, goal: Tensor, alpha: float) -> None:
        """Move a weight towards a goal on any device, in the precision of what is kept beside it, if anything is."""
        average = weight if kept is None else kept
        lerp([average], [goal.to(average)], alpha)
        if kept is not None:
            weight.copy_(kept)

    def of(self, name: str) -> Tensor | None:
        """Return what is kept beside the weight of a name."""
        return vars(self.kept).get(_path(name))

    def make_room(self, state: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
        """Keep tensors like those of a state, by their paths in `kept`, to load them into."""
        held, weights = self.kept, {_path(name): weight for name, weight in weights.items()}
        self.kept = SimpleNamespace()
        for path, value in state.items():
            if path in weights:
                old = vars(held).get(path)
                new = torch.empty_like(weights[path], dtype=value.dtype, device=self.device)
                vars(self.kept)[path] = new if old is None or old.dtype != value.dtype else old

    def _apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        if self.device is None:
            self.kept = SimpleNamespace(**{path: moved(held, fn) for path, held in vars(self.kept).items()})


class MasterWeights(PlainAverage):
    """An average of bfloat16 or float16 weights that is kept whole in float32, 4 bytes a weight more."""

    def kept_dtype(self, dtype: torch.dtype) -> torch.dtype | None:
        """Return float32 for half precisions."""
        return torch.float32 if dtype in (torch.bfloat16, torch.float16) else None


class LowOrderBits(MasterWeights):
    """An average of bfloat16 weights with the lower 16 bits of what float32 would hold, 2 bytes a weight more.

    float16 is no upper half of float32: its weights have float32 ones beside them.
    """

    def kept_dtype(self, dtype: torch.dtype) -> torch.dtype | None:
        """Return int16 for bfloat16."""
        return torch.int16 if dtype == torch.bfloat16 else super().kept_dtype(dtype)

    def first(self, weight: Tensor) -> Tensor:
        """Return no bits."""
        if weight.dtype == torch.bfloat16:
            return torch.zeros_like(weight, dtype=torch.int16)
        return super().first(weight)

    def move(self, weight: Tensor, kept: Tensor | None, goal: Tensor, alpha: float) -> None:
        """Move the average that both make."""
        if kept is None or kept.dtype != torch.int16:
            super().move(weight, kept, goal, alpha)
        elif alpha == 1 and goal.dtype == weight.dtype:
            weight.copy_(goal)
            kept.zero_()
        else:
            _lerp_bits(weight, kept, goal, alpha)


def lerp(targets: list[Tensor], goals: list[Tensor], weight: float) -> None:
    """Move tensors of one precision and device, fused where the device has a kernel for it."""
    if weight == 1:
        torch._foreach_copy_(targets, goals)
    else:
        torch._foreach_lerp_(targets, goals, weight)


def _lerp_bits(upper: Tensor, lower: Tensor, goal: Tensor, weight: float) -> None:
    """Move a bfloat16 tensor whose low-order bits lie beside it, some rows at a time."""
    upper, lower, goal = (torch.atleast_1d(tensor) for tensor in (upper, lower, goal))
    count = CHUNK if upper.device.type == "cpu" else 64 * CHUNK
    rows = max(count * len(upper) // max(upper.numel(), 1), 1)
    for high, low, end in zip(upper.split(rows), lower.split(rows), goal.split(rows), strict=True):
        value = high.float()
        bits = value.view(torch.int32)
        bits += low
        value.lerp_(end.to(value), weight)
        bits.clamp_(max=2**31 - 2**15 - 1)  # what is above is not a number, and stays so
        low.copy_(bits)  # the lower 16, from -2**15 to 2**15 - 1: the others are the nearest bfloat16 above or below
        high.view(torch.int16).copy_(bits.add_(2**15).bitwise_right_shift_(16))


def moved(tensor: Tensor, fn: Callable[[Tensor], Tensor]) -> Tensor:
    """Return a tensor in its own precision, on the device that a function moves tensors to."""
    return tensor.to(fn(tensor.new_empty(0)).device)


def _path(name: str) -> str:
    return name.replace(".", "/")
