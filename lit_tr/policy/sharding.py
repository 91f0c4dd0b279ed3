"""Weights in shards: FSDP2 (`fully_shard`) on a policy and its references, each layer a unit."""

from collections.abc import Callable
from functools import wraps
from typing import Any, cast

from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_tr.errors import UserError


def shard(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard a model's weights, layer by layer, in place.

    Args:
        model: a causal language model, with an adapter or without.
        mesh: the devices among which each weight is parted.

    Raises:
        UserError: some weights are no floating-point numbers.
    """
    for name, param in model.named_parameters():
        if not param.is_floating_point():
            raise UserError(
                f"{name}: FSDP2 parts floating-point weights alone, and these are {param.dtype}: in place of a base "
                "that is saved in 4 bits take the original with model.policy.quantize nf4, or take trainer.strategy ddp"
            )
    for layer in model.modules():
        if isinstance(layer, GradientCheckpointingLayer):  # transformers' mark of a repeated layer
            fully_shard(layer, mesh=mesh)
    # FSDP2 would leave embeddings and head gathered behind a forward pass, and an update would meet them whole
    fully_shard(model, mesh=mesh, reshard_after_forward=True)
    for part in model.modules():
        # at its first gathering FSDP2 notes for good which weights are trained, and a reference is scored first
        if isinstance(part, FSDPModule):
            part.unshard()
            part.reshard()
    return model


def data_mesh(mesh: DeviceMesh | None) -> DeviceMesh | None:
    """Return the devices that the weights are sharded among, if they are.

    Raises:
        UserError: single tensors are to be divided, too.
    """
    if mesh is None:
        return None
    if mesh["tensor_parallel"].size() > 1:
        raise UserError(
            "lit_tr shards weights by FSDP2 and not by tensors: give ModelParallelStrategy data_parallel_size N and "
            "tensor_parallel_size 1"
        )
    return mesh["data_parallel"]


def gathers(score: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let a function that runs parts of its first argument, a model, find the model's own shards gathered.

    FSDP2 gathers what no layer holds, embeddings and head, when the model itself is called. The function becomes a
    method of the model that counts as its call.
    """
    name = f"_lit_tr_{score.__name__}"

    @wraps(score)
    def called(model: Any, *args: Any) -> Tensor:
        if not isinstance(model, FSDPModule):
            return score(model, *args)
        if name not in vars(model):
            vars(model)[name] = score.__get__(model)
            register_fsdp_forward_method(cast(nn.Module, model), name)
        return vars(model)[name](*args)

    return called


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard of a tensor, or the tensor if it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return a tensor whole, on each rank; to be called on all of them."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def write(target: Tensor, value: Tensor) -> None:
    """Write a whole value to a tensor, or to this rank's shard of it; the shards are those of the first rank's value.

    Other ranks may have computed another one, on other hardware: a matrix has more than one decomposition.
    """
    if isinstance(target, DTensor):
        value = distribute_tensor(value.to(target.dtype), target.device_mesh, target.placements)
    target.copy_(value)


def of_ranks(value: Any) -> list[Any]:
    """Return a value of each rank; to be called on all of them."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values
