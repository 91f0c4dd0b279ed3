"""A LightningModule with a policy in its tree, and references outside of it."""

from collections.abc import Callable, Iterator
from typing import Any, Self

from lightning.pytorch import LightningModule
from torch import Tensor, nn

from lit_tr.policy.adapters import base_state_keys
from lit_tr.reference import Reference


class ReferenceHolder(LightningModule):
    """Moves, saves and loads references with the policy, and shows them to no optimizer and no average of weights.

    `state_dict` and `load_state_dict` are each other's inverse, strictly: they hold the policy without a base that
    training never changes, and the reference.

    Attributes:
        policy: the trained policy.
        reference: what the loss compares it with; None where it needs none.
        initial: the initial policy, where it is kept beside a reference that moves.
    """

    policy: nn.Module
    reference: Reference | None
    initial: Reference | None

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_post_hook(_add_reference)
        self.register_load_state_dict_pre_hook(take_reference)
        self.register_load_state_dict_post_hook(_forgive_base)

    @property
    def held(self) -> list[Reference]:
        """The reference and the initial policy, as far as they are wanted."""
        return [one for one in (self.reference, self.initial) if one is not None]

    @property
    def start(self) -> Reference | None:
        """The initial policy; None where it is not kept."""
        return self.reference if self.reference is not None and self.reference.is_start else self.initial

    def steps_ahead(self, step: int) -> int:
        """Return of how many optimizer steps after step `step` the batches are drawn together."""
        return 1 if self.reference is None else self.reference.steps_ahead(step)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the policy's parameters; a reference's adapter and 4-bit codes are for no average of weights."""
        hidden = [f".{held.adapter}." for held in self.held if held.adapter]
        for name, param in super().named_parameters(*args, **kwargs):
            if not hasattr(param, "quant_state") and not any(adapter in name for adapter in hidden):
                yield name, param

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for held in self.held:
            held._apply(fn)
        return self


def _add_reference(module: Any, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    if hasattr(module, "policy"):
        for key in base_state_keys(module.policy):
            state.pop(f"{prefix}policy.{key}", None)
        if module.reference is not None:
            state |= {f"{prefix}reference.{name}": one for name, one in module.reference.state_dict().items()}


def take_reference(module: Any, state: dict[str, Any], prefix: str, metadata: Any, *args: Any) -> None:
    """Load the reference from a state_dict, out of which its keys are taken."""
    start, missing = f"{prefix}reference.", args[1]
    found = {key.removeprefix(start): state.pop(key) for key in list(state) if key.startswith(start)}
    if module.reference is not None:
        missing += [start + name for name in module.reference.load_state_dict(found)]


def _forgive_base(module: Any, incompatible: Any) -> None:
    base = base_state_keys(module.policy) if hasattr(module, "policy") else set()
    kept = [key for key in incompatible.missing_keys if key.partition("policy.")[2] not in base]
    incompatible.missing_keys[:] = kept
