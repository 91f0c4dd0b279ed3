"""The layers of a policy, whose step is measured on a few of them: what each one more takes is the same."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lit_tr.planning.dry_run import Step
from lit_tr.policy.layers import repeated_layers

FEW = (2, 3)
"""Groups of layers that a step is measured on."""


class Stack:
    """The repeated layers of a policy, in groups that are alike, such as one with full and five with local attention.

    Args:
        policy: a policy, with or without values.
        types: what kind of attention each layer has, if layers differ in that.

    Attributes:
        period: layers in a group.
    """

    def __init__(self, policy: nn.Module, types: list[str] | None = None) -> None:
        path, self.layers = repeated_layers(policy)
        parent, _, self.name = path.rpartition(".")
        self.parent = policy.get_submodule(parent)
        kinds = [(_kind(layer), (types or [])[i : i + 1]) for i, layer in enumerate(self.layers)]
        alike = (p for p in range(1, len(kinds)) if all(kinds[i] == kinds[i - p] for i in range(p, len(kinds))))
        self.period = next(alike, len(kinds))
        self.few = FEW if 0 < self.period * sum(FEW) <= len(kinds) else ()

    @contextmanager
    def first(self, groups: int) -> Iterator[None]:
        """Leave out all but some groups of layers."""
        own = getattr(self.parent, self.name)
        setattr(self.parent, self.name, own[: groups * self.period])
        try:
            yield
        finally:
            setattr(self.parent, self.name, own)

    def measure(self, step: Callable[[dict[int, int]], list[Step]]) -> Step:
        """Return a step of the policy, from steps of a few groups of layers where it has many.

        The peak is reached at the top, before the last layers have their gradients, or at the bottom: in between memory
        rises or falls by the same amount from layer to layer. Both are linear in the number of layers.

        Args:
            step: runs a step of the policy as it is; takes the number of the group of each parameter, by its id.
        """
        groups = {id(param): i // self.period for i, layer in enumerate(self.layers) for param in layer.parameters()}
        if not self.few:
            return max(step(groups), key=lambda one: one.peak)
        fewer, more = (self._measure(step, groups, count) for count in self.few)
        times = len(self.layers) / self.period - self.few[1]
        ends = [end.extended(other, times) for other, end in zip(fewer, more, strict=True)]
        return max(ends, key=lambda one: one.peak)

    def _measure(self, step: Callable[[dict[int, int]], list[Step]], groups: dict[int, int], count: int) -> list[Step]:
        with self.first(count):
            return step(groups)


def _kind(layer: nn.Module) -> Any:
    named = layer.named_parameters()
    return type(layer), [(name, param.shape, param.dtype, param.requires_grad) for name, param in named]
