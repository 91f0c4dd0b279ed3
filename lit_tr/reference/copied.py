"""CopyReference: a reference that is a second model."""

from collections.abc import Callable
from copy import deepcopy
from types import SimpleNamespace
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from lit_tr.errors import UserError
from lit_tr.policy.adapters import has_adapter
from lit_tr.policy.quantization import NF4Linear, quantized_copy
from lit_tr.reference.averaging import Alpha, distance, parameters, soft_update
from lit_tr.reference.base import Reference, frozen_copy, updates_of
from lit_tr.reference.precision import LowOrderBits, MasterWeights, PlainAverage, moved

AVERAGES: dict[str, type[PlainAverage]] = {
    "low_order_bits": LowOrderBits,
    "master": MasterWeights,
    "plain": PlainAverage,
}
AVERAGE_PREFIX = "averaged.kept."
"""Prefix of the average's tensors in a checkpoint."""


class CopyReference(Reference):
    """A second model, for soft and hard updates of full fine-tuning.

    Soft updates of half-precision weights need an average that does not round small steps away. It starts with a fit
    whose callbacks make soft updates, or at the first one, and is saved in the checkpoint; hard updates need none.

    Args:
        average: `low_order_bits` keeps the lower 16 bits of float32 beside bfloat16 weights, 2 more bytes per
            weight; `master` keeps float32 master weights, 4 more bytes per weight, and so do both for float16; `plain`
            rounds at each update.
        average_device: device of the master weights, such as `cpu`; None follows the second model.
        dtype: precision of the second model, whatever the trainer's; None takes the policy's. `nf4` quantizes the
            linear layers except the head to 4 bits, for hard updates only: an eighth of float32, with log-probs of
            rounded weights.
        device: device of the second model, such as `cpu`; None follows the policy.
    """

    optional = ("averaged.",)

    def __init__(
        self,
        average: Literal["low_order_bits", "master", "plain"] = "low_order_bits",
        average_device: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16", "nf4"] | None = None,
        device: str | None = None,
    ) -> None:
        if average_device and average != "master":
            raise UserError(f"CopyReference: average_device is for master weights; {average} stays with the weights")
        self.average, self.average_device, self.dtype, self.device = average, average_device, dtype, device
        self.hard_only = dtype == "nf4"
        self.model: nn.Module
        self.averaged = AVERAGES[average](average_device)

    def setup(self, trainer: Any, module: Any) -> None:
        """Raise a `UserError` if the weights will be sharded, and the second model could not be as the policy is."""
        if module.device_mesh is not None and (self.hard_only or self.device):
            raise UserError(
                "CopyReference: a sharded second model is on the policy's devices and not in 4 bits: leave dtype nf4 "
                "and device out"
            )

    def check_policy(self, has_adapter: bool) -> None:
        """Raise a `UserError` if there is an adapter."""
        if has_adapter:
            raise UserError("CopyReference would copy the whole base of an adapter: take AdapterReference")

    def prepare(self, policy: nn.Module) -> None:
        """Become a copy of a policy without an adapter."""
        self.check_policy(has_adapter(policy))
        dtype = None if self.hard_only else getattr(torch, self.dtype or "", None)
        self.model = frozen_copy(policy, quantized_copy if self.hard_only else deepcopy).to(self.device, dtype)

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        """Start the average if an update will need it: the weights now have their final precision."""
        if all(update.hard for update in updates_of(trainer)):
            self.averaged.kept = SimpleNamespace()
        else:
            self.averaged.begin(parameters(self.model))

    def update(self, policy: nn.Module, alpha: Alpha) -> dict[str, float]:
        """Move the second model towards the policy; in 4 bits alpha must be 1."""
        if self.hard_only and alpha != 1:
            raise UserError("CopyReference: a model in 4 bits takes only hard updates of all layers")
        packed = {name: layer for name, layer in self.model.named_modules() if isinstance(layer, NF4Linear)}
        for name, layer in packed.items():
            layer.copy_from(cast(nn.Linear, policy.get_submodule(name)))
            layer.to(self.device)
        averages = alpha != 1 or vars(self.averaged.kept)
        soft_update(policy, self.model, alpha, self.averaged if averages else None, without=packed)
        return {}

    def distance(self, policy: nn.Module) -> Tensor | None:
        """Return the Euclidean norm of the difference of all weights; None in 4 bits, whose rounding would hide it."""
        return None if self.hard_only else distance(policy, self.model)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights of the second model and the tensors of their average."""
        averaged = {f"{AVERAGE_PREFIX}{path}": value for path, value in vars(self.averaged.kept).items()}
        return super().state_dict() | averaged

    def load_state_dict(self, state: dict[str, Tensor]) -> list[str]:
        """Load the weights, and the average if the checkpoint has one; else drop it."""
        kept = {name: value for name, value in state.items() if name.startswith(AVERAGE_PREFIX)}
        kept = {name.removeprefix(AVERAGE_PREFIX): value for name, value in kept.items()}
        self.averaged.allocate(kept, parameters(self.model))
        return super().load_state_dict(state)

    def _apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Keep `device` and `dtype` when the module is moved or cast."""
        if self.device or self.model is None:
            return
        keep_dtype = self.dtype and not self.hard_only
        self.model._apply((lambda tensor: moved(tensor, fn)) if keep_dtype else fn)
        self.averaged._apply(fn)
