"""Language models, and their log-probs of responses."""

import logging

# PEFT imports bitsandbytes, which logs an optional CPU kernel that is missing as an error
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

from lit_tr.policy.loading import LoRA, PretrainedPolicy
from lit_tr.policy.logprobs import response_log_probs

__all__ = ["LoRA", "PretrainedPolicy", "response_log_probs"]
