"""Sample from a policy and evaluate it."""

from lit_tr.evaluation.generate import Generation, generate
from lit_tr.evaluation.kl import divergences
from lit_tr.evaluation.monitor import PolicyMonitor
from lit_tr.evaluation.report import GenerationReport

__all__ = ["Generation", "GenerationReport", "PolicyMonitor", "divergences", "generate"]
