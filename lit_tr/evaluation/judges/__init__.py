"""Judges: what compares two responses to a prompt, or scores one."""

from lit_tr.evaluation.judges.base import ByScore, FunctionScorer, Judge, Pair, Scorer, Verdict
from lit_tr.evaluation.judges.ensemble import Ensemble
from lit_tr.evaluation.judges.llm import LLMJudge, LLMScorer
from lit_tr.evaluation.judges.reward_model import RewardModel

__all__ = [
    "ByScore",
    "Ensemble",
    "FunctionScorer",
    "Judge",
    "LLMJudge",
    "LLMScorer",
    "Pair",
    "RewardModel",
    "Scorer",
    "Verdict",
]
