"""Sharded weights: FSDP2 (`fully_shard`) on a policy and its references, one unit per layer."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from lit_tr.errors import UserError

Result = TypeVar("Result")


def shard(model: nn.Module, mesh: DeviceMesh, precision: str) -> nn.Module:
    """Shard the weights of a causal language model over some devices, layer by layer, in place.

    In bf16-mixed precision they are gathered in bfloat16, half of the bytes, and gradients are added up in float32;
    else, and where some are codes of 4 bits, both are in the weights' own precision.

    Args:
        model: the model.
        mesh: the devices.
        precision: that of the Trainer.

    Raises:
        UserError: some weights are not floating-point numbers.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer  # a second, which an update need not take

    for name, param in model.named_parameters():
        if not param.is_floating_point():
            raise UserError(
                f"{name}: FSDP2 shards floating-point weights only, and these are {param.dtype}: in place of a base "
                "that is saved in 4 bits take the original with model.policy.quantize nf4, or take trainer.strategy ddp"
            )
    halves = precision == "bf16-mixed" and not any(hasattr(param, "quant_state") for param in model.parameters())
    sent = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if halves else MixedPrecisionPolicy()
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):  # transformers' mark of a repeated layer
            fully_shard(layer, mesh=mesh, mp_policy=sent)
    # else FSDP2 would leave embeddings and head gathered after a forward pass, and an update would get full tensors
    fully_shard(model, mesh=mesh, reshard_after_forward=True, mp_policy=sent)
    for unit in model.modules():
        # at the first gather FSDP2 records for good which weights are trained, and a reference is scored first
        if isinstance(unit, FSDPModule):
            unit.unshard()
            unit.reshard()
    return model


@torch.no_grad()
def replicate(model: nn.Module, device: torch.device) -> None:
    """Give all ranks the weights of rank 0, as DistributedDataParallel does later: what is drawn at random differs.

    Args:
        model: the model of each rank, of the same shapes.
        device: that of the rank, which sends and receives.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        sent = tensor.detach().to(device).contiguous()
        distributed.broadcast(sent, src=0)
        tensor.copy_(sent)


def data_mesh(mesh: DeviceMesh | None) -> DeviceMesh | None:
    """Return the devices that the weights are sharded over, if they are; tensor parallelism is a `UserError`."""
    if mesh is None:
        return None
    if mesh["tensor_parallel"].size() > 1:
        raise UserError(
            "lit_tr shards weights by FSDP2, without tensor parallelism: give ModelParallelStrategy "
            "data_parallel_size N and tensor_parallel_size 1"
        )
    return mesh["data_parallel"]


def is_sharded(model: nn.Module) -> bool:
    """Whether the weights of a model are sharded."""
    return isinstance(model, FSDPModule)


def gathers(score: Callable[..., Result]) -> Callable[..., Result]:
    """Gather the shards of a model for a function that calls submodules of it, its first argument.

    FSDP2 gathers embeddings and head, which are in no layer, when the model itself is called. The function becomes a
    forward method of the model.
    """
    name = f"_lit_tr_{score.__name__}"

    @wraps(score)
    def called(model: Any, *args: Any) -> Result:
        if not isinstance(model, FSDPModule):
            return score(model, *args)
        if name not in vars(model):
            vars(model)[name] = score.__get__(model)
            register_fsdp_forward_method(cast(nn.Module, model), name)
        return vars(model)[name](*args)

    return called


def local_shard(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor, or the tensor if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor on each rank; a collective call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def write(target: Tensor, value: Tensor, source: int | None = 0) -> None:
    """Write a full value to a tensor, or to this rank's shard of it.

    Args:
        target: the tensor.
        value: the value.
        source: the rank whose value all shards are of: others may have computed another one, on other hardware, for a
            matrix has more than one decomposition. None takes each rank's own, where all have the same.
    """
    if isinstance(target, DTensor):
        value = value.to(target.dtype)
        value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=source)
    target.copy_(value)


def of_ranks(value: Any) -> list[Any]:
    """Gather an object from each rank; a collective call."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values
