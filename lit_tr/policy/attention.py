"""Attention over shared-prefix packs, for models that look up their attention in transformers' `AttentionInterface`.

A model keeps the name of the attention that transformers gave it: some models depend on the name. A call with `packing`
goes to lit_tr's attention, and any other one unchanged to the model's own. So the choice is part of the call, and
gradient checkpointing, which calls again in the backward pass, repeats it.

On CUDA a pack goes through FlexAttention, whose block mask skips what no token sees. Elsewhere, and with attention
dropout, which FlexAttention does not have, each group of a prompt with its responses is computed by itself, so that the
cost is that of the groups, not of the pack's square.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lit_tr.data.groups import Packing
from lit_tr.policy.compiled import compiled

PACKABLE = ("sdpa", "eager")
"""Attention implementations of transformers that packs are computed for."""

PLACEHOLDER = (1, 1, 1, 1)
"""Shape of a pack's mask: with 4 dimensions it is passed on to the layers unchanged."""

Attend = Callable[..., tuple[Tensor, Tensor | None]]


def placeholder_mask(input_ids: Tensor) -> Tensor:
    """Return the attention mask to pass with `packing`, which defines who sees whom."""
    return input_ids.new_ones(PLACEHOLDER, dtype=torch.bool)


def attend(
    own: Attend, module: nn.Module, *tensors: Tensor | None, packing: Packing | None = None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    """Attend as the model's own attention, or within each group of a pack if there is a `packing`."""
    if packing is None:
        return own(module, *tensors, **kwargs)
    return packed_attention(own, module, *tensors, packing=packing, **kwargs)


@torch.compiler.disable  # a graph break in compiled layers: groups differ from batch to batch
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
    """Attend within each group of a pack, by the model's own attention and its options.

    Queries are `(1, heads, tokens, dim)`, keys and values `(1, key heads, tokens, dim)`, the mask the placeholder.
    Tokens `sliding_window` positions back, or more, are not seen.

    Returns:
        The output, `(1, tokens, heads, dim)`, and no weights.

    Raises:
        NotImplementedError: the model adds something to the scores that packs do not support.
    """
    if attention_mask is not None and attention_mask.shape != PLACEHOLDER:
        raise NotImplementedError("the model's layers change the attention mask")
    if kwargs.get("position_bias") is not None:
        raise NotImplementedError("the model adds a position bias to its attention")
    if query.is_cuda and not kwargs.get("dropout"):
        return _flexible(query, key, value, packing.block_mask(sliding_window), **kwargs), None
    # a slice's gradient is of the length of the pack, and the sum of all slices' would take the square of it
    sizes = [end - start for start, end in packing.offsets]
    groups = zip(*(tensor.split(sizes, dim=2) for tensor in (query, key, value)), strict=True)
    outputs = []
    for group, (q, k, v) in enumerate(groups):
        mask = partial(packing.mask, group, query.dtype, sliding_window)
        if own is sdpa_attention_forward:
            outputs.append(_grouped_sdpa(q, k, v, mask, **kwargs))
        else:  # models that cap scores (Gemma 2) or have sinks (gpt-oss)
            outputs.append(own(module, q, k, v, mask(), **kwargs)[0])
    return torch.cat(outputs, dim=1), None


def flexible(
    query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: str, softcap: str, sinks: Tensor | None
) -> Tensor:
    """Compute FlexAttention without repeated keys; autocast acts on it as on torch's other attention.

    Scores are capped at `softcap * tanh(score / softcap)`, as in Gemma 2. A sink is one more score of a head, for no
    token (gpt-oss): with the logarithm l of the sum of the exponentials of the scores, it leaves the share
    `exp(l) / (exp(l) + exp(sink))` of the output. Numbers are given as text, or "" for none: compiled for dynamic
    shapes they would be symbols, which FlexAttention's cap cannot take.

    Returns:
        The output, `(1, tokens, heads, dim)`.
    """
    kind = query.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else query.dtype
    query, key, value = (tensor.to(dtype) for tensor in (query, key, value))

    def cap(score: Tensor, *index: Tensor) -> Tensor:
        return float(softcap) * torch.tanh(score / float(softcap))

    output, aux = flex_attention(
        *(query, key, value, cap if softcap else None, mask, float(scaling) if scaling else None),
        enable_gqa=True,
        return_aux=AuxRequest(lse=sinks is not None),
    )
    if sinks is not None:
        output = output * torch.sigmoid(cast(Tensor, aux.lse) - sinks[:, None]).to(dtype)[..., None]
    return output.transpose(1, 2).contiguous()


def _flexible(*tensors: Any, scaling: Any = None, softcap: Any = None, s_aux: Any = None, **kwargs: Any) -> Tensor:
    return _compiled()(*tensors, *("" if number is None else repr(number) for number in (scaling, softcap)), s_aux)


@cache
def _compiled() -> Callable[..., Tensor]:
    return compiled(flexible)


def _grouped_sdpa(
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
    """Stack the query heads of each key head: no key is repeated, which saves a quarter of the time."""
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
