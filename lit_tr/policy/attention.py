"""Attention over shared-prefix packs, for models that look up their attention in transformers' `AttentionInterface`.

A model keeps the attention that transformers gave it, under its own name: some models ask for that name. What a model
looks up goes to lit_tr's attention where a call brings `packing`, and unchanged to the model's own in all other calls.
So the choice travels with the call, and gradient checkpointing, which calls again in the backward pass, makes it again.

On CUDA a pack goes through FlexAttention, whose block mask leaves out what no token sees. Elsewhere each group of a
prompt with its responses goes by itself, so that the cost is that of the groups, not of the pack's square.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lit_tr.data.batches import Packing

PACKABLE = ("sdpa", "eager")
"""Attention implementations of transformers that packs are computed for."""

PLACEHOLDER = (1, 1, 1, 1)
"""Shape of the mask that a pack brings: one of 4 dimensions is passed on to the layers as it is."""

Attend = Callable[..., tuple[Tensor, Tensor | None]]


def placeholder_mask(input_ids: Tensor) -> Tensor:
    """Return the attention mask to call a model with beside `packing`, which says what is seen."""
    return input_ids.new_ones(PLACEHOLDER, dtype=torch.bool)


def attend(
    own: Attend, module: nn.Module, *tensors: Tensor | None, packing: Packing | None = None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend as the model does by itself, or within each group of a pack where there is a `packing`."""
    if packing is None:
        return own(module, *tensors, **kwargs)
    return packed_attention(own, module, *tensors, packing=packing, **kwargs)


@torch.compiler.disable  # compiled layers stop before it and go on after: groups differ from batch to batch
def packed_attention(
    own: Attend,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packing: Packing,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attend within each group of a pack.

    Args:
        own: the model's own attention.
        module: the layer that calls.
        query: `(1, heads, tokens, dim)`.
        key: `(1, key heads, tokens, dim)`.
        value: `(1, key heads, tokens, dim)`.
        attention_mask: the placeholder that the model was called with; the packing says what is seen.
        packing: where the groups lie.
        sliding_window: what is as many positions back, or more, is not seen.
        kwargs: what the model's own attention takes.

    Returns:
        The output, `(1, tokens, heads, dim)`, and no weights.

    Raises:
        NotImplementedError: the model adds something to the scores that a pack would lose.
    """
    if attention_mask is not None and attention_mask.shape != PLACEHOLDER:
        raise NotImplementedError("the model's layers change the attention mask")
    if kwargs.get("position_bias") is not None:
        raise NotImplementedError("the model adds a position bias to its attention")
    if query.is_cuda and not kwargs.get("dropout"):  # FlexAttention knows no dropout
        return flex_attention_forward(module, query, key, value, packing.block_mask(sliding_window), **kwargs)
    within = _grouped_sdpa if own is sdpa_attention_forward else _grouped
    outputs = []
    for group, (start, end) in enumerate(packing.offsets):
        q, k, v = (tensor[:, :, start:end] for tensor in (query, key, value))
        mask = partial(packing.mask, group, query.dtype, sliding_window)
        outputs.append(within(own, module, q, k, v, mask, **kwargs))
    return torch.cat(outputs, dim=1), None


def _grouped(
    own: Attend,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Callable[..., Tensor],
    **kwargs: Any,
) -> Tensor:
    """Take the model's own attention, for models that cap scores (Gemma 2) or have sinks (gpt-oss)."""
    return own(module, query, key, value, mask(), **kwargs)[0]


def _grouped_sdpa(
    own: Attend,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Callable[..., Tensor],
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """Lay the query heads of one key head one below the other: no key is repeated, a quarter of the time saved."""
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("sdpa knows neither caps nor sinks: take attention eager")
    heads, shared = query.shape[1], query.shape[1] // key.shape[1]
    rows = query.reshape(1, heads // shared, -1, query.shape[-1])
    output = F.scaled_dot_product_attention(rows, key, value, attn_mask=mask(shared), dropout_p=dropout, scale=scaling)
    return output.reshape(1, heads, query.shape[2], -1).transpose(1, 2)


_own_interface = AttentionInterface.get_interface


def _interface(interface: AttentionInterface, name: str, default: Attend) -> Attend:
    own = _own_interface(interface, name, default)
    return partial(attend, own) if name in PACKABLE else own


AttentionInterface.get_interface = _interface
