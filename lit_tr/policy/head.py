"""The output head of a language model: log-probs of some tokens, with the logits of some at a time in memory."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

CHUNK, CUDA_CHUNK = 2**23, 2**27
"""Logits in memory at a time: 32 MB in float32, and 512 MB on a GPU.

Forward and backward pass of 680 tokens take 2.5 s of a core in chunks of 2^23, 2.8 in those of 2^22, 3.3 in those of
2^21, and no less in those of 2^24 (SmolLM2-135M's head in float32).
"""


Score = Callable[[Tensor, slice], Tensor]
"""From the logits of some tokens, `(tokens, vocabulary)`, and which tokens they are, to values, `(tokens, ...)`."""


def chunk_rows(vocabulary: int, device: torch.device) -> int:
    """Return of how many tokens the logits are in memory at a time."""
    return max((CUDA_CHUNK if device.type == "cuda" else CHUNK) // vocabulary, 1)


def log_probs(causal: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    """Return the log-prob of each target, `(tokens,)`, float32, in nats, from the hidden state before it.

    Logits are computed again in the backward pass. Torch's own `linear_cross_entropy` would keep them out of memory
    too, but in bfloat16 it rounds each log-prob to 8 bits, and it does not cap logits. The kernels of Liger and of
    cut-cross-entropy run on CUDA only; Liger's gave wrong gradients to losses that weigh tokens unequally until its
    pull request 1298 (2026).

    Args:
        causal: a causal language model of Hugging Face's interface.
        hidden: last hidden states, `(tokens, hidden)`.
        targets: token ids, `(tokens,)`.
    """
    return _in_chunks(causal, hidden, partial(_log_probs, targets))


def log_probs_and_kl(causal: Any, hidden: Tensor, targets: Tensor, reference: Callable[[slice], Tensor]) -> Tensor:
    """Return log-probs as `log_probs` does, with those under a reference and the KL divergence from it.

    Of both models the logits of some tokens are in memory at a time, and computed again in the backward pass.

    Args:
        causal: as for `log_probs`.
        hidden: as for `log_probs`.
        targets: as for `log_probs`.
        reference: gives the reference's logits at a slice of the tokens, `(tokens, vocabulary)`, without gradient.

    Returns:
        `(tokens, 3)`, float32, in nats: the log-prob of each target; that under the reference; and
        `KL(reference || model)` of the distributions over the full vocabulary that they are taken from.
    """
    return _in_chunks(causal, hidden, partial(_log_probs_and_kl, targets, reference), models=2)


def logits(causal: Any, hidden: Tensor, head: nn.Module | None = None) -> Tensor:
    """Return the logits of some hidden states, `(tokens, vocabulary)`, float32, by the model's head or a copy of it."""
    head = causal.get_output_embeddings() if head is None else head
    return _scaling(causal.config.get_text_config(decoder=True))(head(hidden))


def _in_chunks(causal: Any, hidden: Tensor, score: Score, models: int = 1) -> Tensor:
    """Return the values of all tokens, with a share of the rows for each of the models whose logits are in memory."""
    config, head = causal.config.get_text_config(decoder=True), causal.get_output_embeddings()
    rows = max(chunk_rows(config.vocab_size, hidden.device) // models, 1)
    if type(head) is nn.Linear:
        scaled = _scaling(config)
        return _LinearHead.apply(hidden, head.weight, head.bias, rows, lambda raw, at: score(scaled(raw), at))

    def scored(part: Tensor, at: slice) -> Tensor:
        return score(logits(causal, part), at)

    chunks = zip(hidden.split(rows), _slices(hidden, rows), strict=True)  # an adapter's head, or one in 4 bits
    return torch.cat([checkpoint(scored, *chunk, use_reentrant=False) for chunk in chunks])


def _slices(hidden: Tensor, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, max(len(hidden), 1), rows)]


def _log_probs(targets: Tensor, logits: Tensor, at: slice) -> Tensor:
    return -F.cross_entropy(logits, targets[at], reduction="none")


def _log_probs_and_kl(targets: Tensor, reference: Callable[[slice], Tensor], logits: Tensor, at: slice) -> Tensor:
    ours, theirs, taken = logits.log_softmax(dim=-1), reference(at).log_softmax(dim=-1), targets[at, None]
    kl = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=-1, keepdim=True)
    return torch.cat([ours.gather(1, taken), theirs.gather(1, taken), kl], dim=1)


def _scaling(config: Any) -> Callable[[Tensor], Tensor]:
    """Return what a model does to the outputs of its head: they become float32, scaled and capped."""

    def scaled(values: Tensor) -> Tensor:
        values = values.float()
        if scale := getattr(config, "logit_scale", None):  # Cohere
            values = values * scale
        if scale := getattr(config, "logits_scaling", None):  # Granite
            values = values / scale
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma
            values = cap * torch.tanh(values / cap)
        return values

    return scaled


class _LinearHead(torch.autograd.Function):
    """Values of a linear head's logits in chunks of tokens; all chunks add to one gradient of its weight."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        rows: int,
        score: Score,
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias)
        ctx.rows, ctx.score, ctx.dtype = rows, score, _dtype(hidden, weight)
        hidden, weight, bias = _cast(ctx.dtype, hidden, weight, bias)
        chunks = zip(hidden.split(rows), _slices(hidden, rows), strict=True)
        return torch.cat([score(F.linear(part, weight, bias), at) for part, at in chunks])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        given, params, constant = ctx.saved_tensors
        hidden, weight, bias = _cast(ctx.dtype, given, params, constant)
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for at in _slices(hidden, ctx.rows):
            with torch.enable_grad(), torch.autocast(hidden.device.type, enabled=False):
                raw = F.linear(hidden[at], weight, bias).detach().requires_grad_()
                values = ctx.score(raw, at)
            (gradient,) = torch.autograd.grad(values, raw, gradients[0][at])
            torch.mm(gradient, weight, out=of_hidden[at])
            if of_weight is not None:
                torch.addmm(of_weight, gradient.T, hidden[at], out=of_weight)
            if of_bias is not None:
                of_bias += gradient.sum(dim=0)
        return of_hidden.to(given.dtype), *_cast(params.dtype, of_weight, of_bias), None, None


def _cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    return [None if one is None else one.to(dtype) for one in tensors]


def _dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return the precision that a linear layer computes in."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
