"""Attention of a GPU on tensors without values: the memory of its kernels, and the FLOPs of the blocks they compute."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from lit_tr.data.batches import Packing

FORWARD, BACKWARD = 2, 7
"""Products of FlexAttention's kernels: of a block of queries with one of keys or values, forward, and backward.

The backward kernels compute the scores and their gradients twice: once for the gradient of the queries, and once for
those of keys and values.
"""


@torch.library.custom_op("lit_tr::planned_attention", mutates_args=())
def visible_attention(query: Tensor, key: Tensor, value: Tensor, seen: int) -> tuple[Tensor, Tensor]:
    """Stand for FlexAttention, without values; `seen`: pairs of tokens in the blocks that are computed.

    Queries are `(1, heads, tokens, dim)`, keys and values `(1, key heads, tokens, dim)`.

    Returns:
        The output as the queries, and the logarithms of the sums of exponentials, `(1, heads, tokens)`, float32.
    """
    raise NotImplementedError("a plan has no values")


@visible_attention.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, seen: int) -> tuple[Tensor, Tensor]:
    return query.new_empty(*query.shape[:-1], value.shape[-1]), query.new_empty(query.shape[:-1], dtype=torch.float32)


@torch.library.custom_op("lit_tr::planned_attention_backward", mutates_args=())
def visible_backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, seen: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Stand for FlexAttention's backward pass; return the gradients of queries, keys and values, as these."""
    raise NotImplementedError("a plan has no values")


@visible_backward.register_fake
def _(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, seen: int) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.seen = inputs
    ctx.save_for_backward(*tensors, *output)


def _backward(ctx: Any, gradient: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, None]:
    return *visible_backward(gradient, *ctx.saved_tensors[:3], ctx.seen), None


visible_attention.register_autograd(_backward, setup_context=_save)


def forward_flops(query: Tensor, key: Tensor, value: Tensor, seen: int, **kwargs: Any) -> int:
    """Return the FLOPs of the blocks in the forward pass."""
    return FORWARD * _flops_of_product(query, seen)


def backward_flops(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, seen: int, **kwargs: Any) -> int:
    """Return the FLOPs of the blocks in the backward pass."""
    return BACKWARD * _flops_of_product(query, seen)


def _flops_of_product(query: Tensor, seen: int) -> int:
    return 2 * query.shape[1] * query.shape[-1] * seen


def gpu_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend with the memory of fused GPU kernels, which hold neither scores nor a key for each query head.

    A pack is FlexAttention's, whose tables of blocks are made as in training. Padded rows are computed in full.
    """
    if packing is None:
        one, heads, tokens, size = query.shape
        out = F.scaled_dot_product_attention(query.reshape(one, key.shape[1], -1, size), key, value)
        return out.reshape(one, heads, tokens, -1).transpose(1, 2).contiguous(), None
    mask = packing.block_mask(sliding_window)
    blocks = [count.sum() for count in (mask.kv_num_blocks, mask.full_kv_num_blocks) if count is not None]
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    rows, columns = mask.BLOCK_SIZE
    out, _ = visible_attention(query.to(dtype), key.to(dtype), value.to(dtype), rows * columns * int(sum(blocks)))
    return out.transpose(1, 2).contiguous(), None


GPU = "gpu_without_values"
AttentionInterface.register(GPU, gpu_attention)
