"""CopyReference: a reference that is a second model."""

from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from lit_tr.data.batches import PairBatch
from lit_tr.errors import UserError
from lit_tr.policy.adapters import has_adapter
from lit_tr.policy.quantization import NF4Linear, quantized_copy
from lit_tr.policy.sharding import shard
from lit_tr.reference.averaging import Alpha, blend, distance
from lit_tr.reference.base import Reference, frozen_copy


class Sums(nn.Module):
    """What is kept of the float32 averages of bfloat16 weights, in buffers by the names of the weights.

    Its buffers keep their precision when a module that holds this one is cast.

    Args:
        device: where they stay; None follows the module that holds this one.
    """

    def __init__(self, device: str | None = None) -> None:
        super().__init__()
        self.device = device

    def keep(self, name: str, tensor: Tensor) -> None:
        """Keep a tensor for the weight of a name."""
        self.register_buffer(name.replace(".", "/"), tensor.to(self.device))

    def by_name(self) -> dict[str, Tensor]:
        """Return the tensors by the names of the weights."""
        return {name.replace("/", "."): buffer for name, buffer in self.named_buffers()}

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        if self.device is not None:
            return self
        return super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), recurse)


class CopyReference(Reference):
    """A second model, for soft and hard updates of full fine-tuning.

    Args:
        sums: how bfloat16 weights are averaged, in which small steps would be rounded away. `halves` keeps the lower 16
            bits of float32 beside them, 2 bytes a weight more; `float32` keeps the float32 averages, 4 bytes a weight
            more; `plain` rounds at each update, and is all that hard updates need.
        sums_device: where `float32` averages are kept, `cpu` say; None follows the policy.
        dtype: precision that the second model is held in; None takes the policy's. `nf4` holds the linear layers but
            the head in 4 bits, for hard updates alone: an eighth of float32, and log-probs that are rounded so.
        device: where the second model is held and scores, `cpu` say; None follows the policy.
    """

    def __init__(
        self,
        sums: Literal["halves", "float32", "plain"] = "halves",
        sums_device: str | None = None,
        dtype: Literal["float32", "bfloat16", "float16", "nf4"] | None = None,
        device: str | None = None,
    ) -> None:
        if sums_device and sums != "float32":
            raise UserError(f"CopyReference: sums_device is for float32 sums; {sums} ones lie beside the weights")
        self.kind, self.dtype, self.device = sums, dtype, device
        self.hard_only = dtype == "nf4"
        self.model: nn.Module
        self.sums = Sums(sums_device)

    def prepare(self, policy: nn.Module) -> None:
        """Become the policy as it is now.

        Raises:
            UserError: the policy trains an adapter.
        """
        if has_adapter(policy):
            raise UserError("CopyReference would copy the whole base of an adapter: take AdapterReference")
        dtype = None if self.hard_only else getattr(torch, self.dtype or "", None)
        self.model = frozen_copy(policy, quantized_copy if self.hard_only else deepcopy).to(self.device, dtype)
        self._keep_sums()

    def shard(self, mesh: DeviceMesh) -> None:
        """Part the weights of the second model among devices, as those of the policy are.

        Raises:
            UserError: it is held in 4 bits, or on a device of its own.
        """
        if self.hard_only or self.device:
            raise UserError(
                "CopyReference: a model in shards lies beside the policy's, and not in 4 bits: leave dtype "
                "nf4 and device out"
            )
        shard(self.model, mesh)
        self._keep_sums()

    def _keep_sums(self) -> None:
        if self.kind == "plain" or self.hard_only:
            return
        for name, param in self.model.named_parameters():
            if param.dtype == torch.bfloat16:
                halves = torch.zeros_like(param, dtype=torch.int16)
                self.sums.keep(name, halves if self.kind == "halves" else param.detach().float())

    def active(self, policy: nn.Module) -> AbstractContextManager[nn.Module]:
        """Return a context whose value is the second model."""
        return nullcontext(self.model)

    def update(self, policy: nn.Module, alpha: Alpha) -> dict[str, float]:
        """Move the second model towards the policy.

        Raises:
            UserError: alpha is not in (0, 1], or below 1 and the model is held in 4 bits.
        """
        if self.hard_only and alpha != 1:
            raise UserError("CopyReference: a model in 4 bits takes hard updates of all layers alone")
        packed = {name: layer for name, layer in self.model.named_modules() if isinstance(layer, NF4Linear)}
        for name, layer in packed.items():
            layer.take(cast(nn.Linear, policy.get_submodule(name)))
        blend(policy, self.model, alpha, None if self.kind == "plain" else self.sums.by_name(), without=packed)
        return {}

    def distance(self, policy: nn.Module) -> float | None:
        """Return the Euclidean norm of the difference of all weights; None in 4 bits, whose rounding would hide it."""
        return None if self.hard_only else distance(policy, self.model)

    def token_log_probs(self, policy: nn.Module, batch: PairBatch) -> Tensor:
        """Return the log-probs of the scored tokens, `(scored tokens,)`, on the batch's device."""
        there = batch if self.device is None else batch.to(self.device)
        return super().token_log_probs(policy, there).to(batch.lengths.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the weights of the second model, and what is kept of their averages."""
        weights = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        return weights | {f"sums.{name}": value for name, value in self.sums.state_dict().items()}

    def _apply(self, fn: Any) -> None:
        """Stay where `device` says when the module is moved."""
        if not self.device:
            super()._apply(fn)
            self.sums._apply(fn)
