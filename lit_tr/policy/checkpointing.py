"""Gradient checkpointing that keeps what is dear to compute: matrix products and attention."""

from typing import Any

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

NARROW = 256
"""Products over fewer numbers are computed again: those of LoRA's rank take as much memory as the layer's own."""


def selective() -> tuple[Any, Any]:
    """Return the contexts of a layer's forward pass, and of what is computed again in the backward pass.

    Selective activation checkpointing (Korthikanti et al. 2022, arXiv 2205.05198, Sec. 5), the other way round: the
    outputs of matrix products and of attention are kept; norms, activation functions, rotations and copies are computed
    again.
    """
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    product = op in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    dear = args[-2].shape[-1] >= NARROW if product else "attention" in str(op)
    return CheckpointPolicy.MUST_SAVE if dear else CheckpointPolicy.PREFER_RECOMPUTE
