"""Attention over shared-prefix packs: each prompt with its responses by itself, so that the cost is that of the groups.

Registered with transformers as the attention `packed`. A model with this attention computes a pack when it is called
with `packing`, and anything else as with `sdpa`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lit_tr.data.batches import Packing

NAME = "packed"


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend within each group of a pack: from `(1, heads, tokens, dim)` to `(1, tokens, heads, dim)`."""
    if packing is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    outputs = []
    for group, (start, end) in enumerate(packing.spans):
        part = (tensor[:, :, start:end] for tensor in (query, key, value))
        output, _ = sdpa_attention_forward(module, *part, packing.mask(group, sliding_window), **kwargs)
        outputs.append(output)
    return torch.cat(outputs, dim=1), None


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
