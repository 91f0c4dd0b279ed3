"""Language models, and their log-probs of responses."""

from typing import TYPE_CHECKING

from lit_tr.lazy import lazy

if TYPE_CHECKING:
    from lit_tr.policy.loading import LoRA, PretrainedPolicy
    from lit_tr.policy.logprobs import response_log_probs

__all__ = ["LoRA", "PretrainedPolicy", "response_log_probs"]

__getattr__, __dir__ = lazy(__name__, {"loading": ["LoRA", "PretrainedPolicy"], "logprobs": ["response_log_probs"]})
