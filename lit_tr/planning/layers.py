"""The layers of a policy, whose step is measured on a few of them: each further one takes what one of these takes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from lit_tr.planning.dry_run import Step
from lit_tr.policy.layers import repeated_layers

FEW = 3
"""Groups of layers that a step is measured on: the first and the last are at its ends, and one is like all others."""


class Stack:
    """The repeated layers of a policy, in groups that are alike, such as one with full and five with local attention.

    Args:
        policy: a policy, with or without values.
        types: what kind of attention each layer has, if layers differ in that.

    Attributes:
        period: layers in a group.
        few: groups that a step is measured on; 0 where it is all layers.
    """

    def __init__(self, policy: nn.Module, types: list[str] | None = None) -> None:
        path, self.layers = repeated_layers(policy)
        parent, _, self.name = path.rpartition(".")
        self.parent = policy.get_submodule(parent)
        kinds = [(_kind(layer), (types or [])[i : i + 1]) for i, layer in enumerate(self.layers)]
        alike = (p for p in range(1, len(kinds)) if all(kinds[i] == kinds[i - p] for i in range(p, len(kinds))))
        self.period = next(alike, len(kinds))
        trained = any(param.requires_grad for layer in self.layers for param in layer.parameters())
        self.few = FEW if trained and self.period * FEW < len(kinds) else 0

    @contextmanager
    def first(self, groups: int) -> Iterator[None]:
        """Leave out all but some groups of layers."""
        own = getattr(self.parent, self.name)
        setattr(self.parent, self.name, own[: groups * self.period])
        try:
            yield
        finally:
            setattr(self.parent, self.name, own)

    def measure(self, step: Callable[[list[list[nn.Module]]], list[tuple[Step, Step]]]) -> Step:
        """Return a step of the policy, from one of a few groups of layers where it has many.

        The peak is reached at the top, before the last layers have their gradients, or at the bottom: in between memory
        rises or falls by the same amount from layer to layer. Both are linear in the number of layers.

        Args:
            step: runs a step of the policy as it is; takes its groups of layers, and returns what `run_step` does.
        """
        groups = [self.layers[i : i + self.period] for i in range(0, len(self.layers), self.period or 1)]
        used = self.few or len(groups)
        with self.first(used):
            ends = step(groups[:used])
        further = len(self.layers) / self.period - used if self.few else 0
        return max((end.extended(added, further) for end, added in ends), key=lambda one: one.peak)


def _kind(layer: nn.Module) -> Any:
    named = layer.named_parameters()
    return type(layer), [(name, param.shape, param.dtype, param.requires_grad) for name, param in named]
