"""Model and batch -> log-probs of the responses."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_tr.data.batches import PairBatch


def response_log_probs(model: nn.Module, batch: PairBatch) -> Tensor:
    """Return the log-prob of each response given its prompt, `(rows,)`, float32, in nats summed over response tokens.

    Args:
        model: a causal language model of Hugging Face's interface.
        batch: prompts and responses, one a row.
    """
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits[:, :-1]
    mask = batch.response_mask[:, 1:]
    token_losses = F.cross_entropy(logits[mask].float(), batch.input_ids[:, 1:][mask], reduction="none")
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, -token_losses).sum(dim=1)


def response_tokens(batch: PairBatch) -> Tensor:
    """Return the number of tokens of each response, `(rows,)`."""
    return batch.response_mask.sum(dim=1)
