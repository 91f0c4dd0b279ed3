"""The output head of a language model: log-probs of some tokens, with the logits of some at a time in memory."""

from collections.abc import Callable
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
    config, head = causal.config.get_text_config(decoder=True), causal.get_output_embeddings()
    rows = chunk_rows(config.vocab_size, hidden.device)
    if type(head) is nn.Linear:
        scaled = _scaling(config)
        return _LinearHead.apply(hidden, head.weight, head.bias, targets, rows, scaled)
    chunks = zip(hidden.split(rows), targets.split(rows), strict=True)  # an adapter's, or one in 4 bits
    return torch.cat([checkpoint(_log_probs, causal, *chunk, use_reentrant=False) for chunk in chunks])


def logits(causal: Any, hidden: Tensor) -> Tensor:
    """Return the logits of some hidden states, `(tokens, vocabulary)`, float32."""
    return _scaling(causal.config.get_text_config(decoder=True))(causal.get_output_embeddings()(hidden))


def _log_probs(causal: Any, hidden: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy(logits(causal, hidden), targets, reduction="none")


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
    """Log-probs of a linear head in chunks of tokens; all chunks add to one gradient of its weight."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        rows: int,
        scaled: Callable[[Tensor], Tensor],
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.rows, ctx.scaled, ctx.dtype = rows, scaled, _dtype(hidden, weight)
        hidden, weight, bias = _cast(ctx.dtype, hidden, weight, bias)
        chunks = zip(hidden.split(rows), targets.split(rows), strict=True)
        return torch.cat(
            [-F.cross_entropy(scaled(F.linear(part, weight, bias)), at, reduction="none") for part, at in chunks]
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        given, params, constant, targets = ctx.saved_tensors
        hidden, weight, bias = _cast(ctx.dtype, given, params, constant)
        of_hidden = torch.empty_like(hidden)
        of_weight = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        of_bias = torch.zeros_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        for start in range(0, len(hidden), ctx.rows):
            at = slice(start, start + ctx.rows)
            with torch.enable_grad(), torch.autocast(hidden.device.type, enabled=False):
                raw = F.linear(hidden[at], weight, bias).detach().requires_grad_()
                values = -F.cross_entropy(ctx.scaled(raw), targets[at], reduction="none")
            (gradient,) = torch.autograd.grad(values, raw, gradients[0][at])
            torch.mm(gradient, weight, out=of_hidden[at])
            if of_weight is not None:
                torch.addmm(of_weight, gradient.T, hidden[at], out=of_weight)
            if of_bias is not None:
                of_bias += gradient.sum(dim=0)
        return of_hidden.to(given.dtype), *_cast(params.dtype, of_weight, of_bias), None, None, None


def _cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    return [None if one is None else one.to(dtype) for one in tensors]


def _dtype(hidden: Tensor, weight: Tensor) -> torch.dtype:
    """Return the precision that a linear layer computes in."""
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
