"""Language models, and what they say of responses."""

import logging

# at its import, which PEFT begins, bitsandbytes calls an optional CPU kernel that it does not find a failure
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

from lit_tr.policy.loading import LoRA, PretrainedPolicy
from lit_tr.policy.logprobs import response_log_probs

__all__ = [
    "LoRA",
    "PretrainedPolicy",
    "response_log_probs",
]
