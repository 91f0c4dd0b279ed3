"""Attention over shared-prefix packs, registered with transformers under names that take the place of its own.

On CUDA a pack goes through FlexAttention, whose block mask leaves out what no token sees. Elsewhere each group of a
prompt with its responses goes by itself, so that the cost is that of the groups, not of the pack's square. A model that
is called without `packing` computes as it would with the attention that was replaced.
"""

import sys
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from lit_tr.data.batches import Packing

REPLACES = {"sdpa": "packed", "eager": "packed_eager"}
"""The attention for packs that takes the place of each one of transformers'."""


@torch.compiler.disable  # compiled layers stop before it and go on after: groups differ from batch to batch
def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend within each group of a pack: from `(1, heads, tokens, dim)` to `(1, tokens, heads, dim)`."""
    tensors, kwargs = (query, key, value), {"scaling": scaling, "dropout": dropout, **kwargs}
    if packing is None:
        return sdpa_attention_forward(module, *tensors, attention_mask, **kwargs)
    if query.is_cuda:
        return flex_attention_forward(module, *tensors, packing.block_mask(sliding_window), **kwargs)
    # the query heads of one key head lie one below the other: no key is repeated, a quarter of the time saved
    heads, shared = query.shape[1], query.shape[1] // key.shape[1]
    outputs = []
    for group, (start, end) in enumerate(packing.spans):
        q, k, v = (tensor[:, :, start:end] for tensor in tensors)
        mask = packing.mask(group, query.dtype, sliding_window, shared)
        output = F.scaled_dot_product_attention(
            q.reshape(1, heads // shared, -1, q.shape[-1]), k, v, attn_mask=mask, dropout_p=dropout, scale=scaling
        )
        outputs.append(output.reshape(1, heads, end - start, -1).transpose(1, 2))
    return torch.cat(outputs, dim=1), None


@torch.compiler.disable
def packed_eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Do the same with the model's own attention, for models that cap scores (Gemma 2) or have sinks (gpt-oss)."""
    if packing is not None and query.is_cuda:
        return flex_attention_forward(module, query, key, value, packing.block_mask(sliding_window), **kwargs)
    attend = sys.modules[type(module).__module__].eager_attention_forward
    if packing is None:
        return attend(module, query, key, value, attention_mask, **kwargs)
    outputs = []
    for group, (start, end) in enumerate(packing.spans):
        part = (tensor[:, :, start:end] for tensor in (query, key, value))
        outputs.append(attend(module, *part, packing.mask(group, query.dtype, sliding_window), **kwargs)[0])
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(REPLACES["sdpa"], packed_attention)
AttentionMaskInterface.register(REPLACES["sdpa"], sdpa_mask)
AttentionInterface.register(REPLACES["eager"], packed_eager_attention)
AttentionMaskInterface.register(REPLACES["eager"], eager_mask)
