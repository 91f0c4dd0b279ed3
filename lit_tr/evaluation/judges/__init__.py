"""Judges: what compares two responses to a prompt, or scores one."""

from lit_tr.evaluation.judges.base import ByScore, Judge, Pair, Verdict
from lit_tr.evaluation.judges.llm import LLMJudge, LLMScorer
from lit_tr.evaluation.judges.principles import Principles
from lit_tr.rewards import Ensemble, FunctionScorer, RewardModel, Scorer

__all__ = [
    "ByScore",
    "Ensemble",
    "FunctionScorer",
    "Judge",
    "LLMJudge",
    "LLMScorer",
    "Pair",
    "Principles",
    "RewardModel",
    "Scorer",
    "Verdict",
]
