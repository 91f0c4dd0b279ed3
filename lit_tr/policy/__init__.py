"""The policy, its reference, and how the one follows the other."""

from lit_tr.policy.adapter_reference import AdapterReference
from lit_tr.policy.copy_reference import CopyReference
from lit_tr.policy.loading import LoRA, PretrainedPolicy
from lit_tr.policy.logprobs import response_log_probs
from lit_tr.policy.reference import FrozenReference, Reference
from lit_tr.policy.window import WindowReference

__all__ = [
    "AdapterReference",
    "CopyReference",
    "FrozenReference",
    "LoRA",
    "PretrainedPolicy",
    "Reference",
    "WindowReference",
    "response_log_probs",
]
