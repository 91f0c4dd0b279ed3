"""A batch, and a policy that is trained and scored by hand."""

import torch

from lit_tr.data.collator import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.policy import response_log_probs
from lit_tr.policy.logprobs import scoring

BATCH = Collator(packed=False)([TokenizedExample([5, 17], [300, 41, 0], [8, 0])])


def moved(policy, seed=2):
    """Train one step by hand."""
    torch.manual_seed(seed)
    for param in policy.parameters():
        if param.requires_grad:
            param.data += 0.1 * torch.randn_like(param)
    return policy


def policy_log_probs(policy):
    with scoring(policy):
        return response_log_probs(policy, BATCH)
