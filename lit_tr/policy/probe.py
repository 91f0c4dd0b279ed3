"""Proof that a model computes packs as it computes padded rows."""

from typing import Any

import torch
from torch import nn

from lit_tr.data.batches import Collator, PackedBatch
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.policy.adapters import causal_model
from lit_tr.policy.logprobs import response_log_probs
from lit_tr.policy.reference import scoring

TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest difference for round-off, in nats a response token; a wrong mask makes 0.2 and more."""


def why_not_packed(model: Any) -> str | None:
    """Score two pairs in both layouts; return the reason to pad, or None where the layouts agree.

    One prompt is one token long, one pair passes the model's sliding window if it has one.
    """
    try:
        difference, tolerance = _difference(model)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        return f"the model does not take packs ({type(error).__name__}: {error})"
    if difference <= tolerance:
        return None
    return f"packs and padded rows differ by {difference:.2g} nats a token, where round-off is {tolerance:.2g}"


def _difference(model: nn.Module) -> tuple[float, float]:
    batch = _probe(model)
    with scoring(model):
        packed = response_log_probs(model, batch)
        padded = response_log_probs(model, batch.padded())
    per_token = ((packed - padded).abs() / batch.lengths).max().item()
    dtype = torch.get_autocast_dtype(batch.input_ids.device.type) if _autocast(batch) else causal_model(model).dtype
    return per_token, TOLERANCE.get(dtype, 5e-2)


def _autocast(batch: PackedBatch) -> bool:
    return torch.is_autocast_enabled(batch.input_ids.device.type)


def _probe(model: nn.Module) -> PackedBatch:
    config = causal_model(model).config.get_text_config()
    window = getattr(config, "sliding_window", None) or 0
    longest = getattr(config, "max_position_embeddings", None) or 1024
    length = max(min(window + 32, longest - 24), 8)
    draw = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(config.vocab_size, (count,), generator=draw).tolist()

    pairs = [TokenizedExample(ids(1), ids(5), ids(9)), TokenizedExample(ids(length), ids(20), ids(3))]
    batch = Collator()(pairs)
    assert isinstance(batch, PackedBatch)
    return batch.to(causal_model(model).device)
