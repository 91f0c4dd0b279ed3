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
    """Shard the weights of rank 0 of a causal language model over some devices, layer by layer, in place.

    Those of the other ranks may be on the meta device, without values. Besides shards a device holds one layer at a
    time, or what is in none. In bf16-mixed precision weights are gathered in bfloat16, half of the bytes, and gradients
    are added up in float32; else, and where some are codes of 4 bits, both are in the weights' own precision.

    Args:
        model: the model.
        mesh: the devices.
        precision: that of the Trainer.

    Raises:
        UserError: some weights are not floating-point numbers, or not the same on all ranks.
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
            replicate(layer, torch.device(mesh.device_type))
            fully_shard(layer, mesh=mesh, mp_policy=sent)
    replicate(model, torch.device(mesh.device_type))
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
    """Give all ranks the weights and buffers of rank 0, on a device: what is drawn at random differs.

    Args:
        model: the model of each rank, of the same names and shapes; what is in shards already is left out.
        device: that of the rank, which sends and receives. What is elsewhere is moved there, or made if it is meta.

    Raises:
        UserError: the names or shapes are others than on rank 0.
    """
    named = dict((*model.named_parameters(), *model.named_buffers()))
    own = {name: tensor for name, tensor in named.items() if not isinstance(tensor, DTensor)}
    kinds = of_ranks({name: (tensor.shape, tensor.dtype) for name, tensor in own.items()})
    for name in sorted(set().union(*kinds)):
        if len({kind[name][0] if name in kind else None for kind in kinds}) > 1:
            raise UserError(f"{name}: this weight is not on all ranks, or not of one shape")
    for name, (shape, dtype) in kinds[0].items():
        tensor = own[name]
        made = torch.empty(shape, dtype=dtype, device=device) if tensor.is_meta else tensor.detach().to(device, dtype)
        distributed.broadcast(sent := made.contiguous(), src=0)
        if tensor.device == sent.device:
            tensor.copy_(sent)
        else:  # in the place of the other, for all modules that share it
            moved = nn.Parameter(sent, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else sent.detach()
            torch.utils.swap_tensors(tensor, moved)


def follow_random_state(before: Tensor) -> None:
    """Let random numbers of the CPU go on alike on all ranks, if they were so `before` rank 0 alone drew some."""
    begun, now = of_ranks((before, torch.get_rng_state()))[0]
    if torch.equal(before, begun):
        torch.set_rng_state(now)


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


def of_first(compute: Callable[[], Result]) -> Result:
    """Return what a function gives on rank 0, which alone calls it; a collective call."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return compute()
    return of_ranks(compute() if distributed.get_rank() == 0 else None)[0]
