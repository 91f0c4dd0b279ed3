"""Judges: what compares two responses to a prompt, or scores one."""

from lit_tr.evaluation.judges.base import ByScore, Judge, Pair, Verdict
from lit_tr.evaluation.judges.llm import LLMJudge, LLMScorer
from lit_tr.evaluation.judges.principles import Principles
from lit_tr.evaluation.judges.reward import JudgeReward
from lit_tr.evaluation.judges.rows import EvaluationRows
from lit_tr.evaluation.judges.self_reference import SelfReference
from lit_tr.rewards import Ensemble, FunctionScorer, RewardModel, Scorer

__all__ = [
    "ByScore",
    "Ensemble",
    "EvaluationRows",
    "FunctionScorer",
    "Judge",
    "JudgeReward",
    "LLMJudge",
    "LLMScorer",
    "Pair",
    "Principles",
    "RewardModel",
    "Scorer",
    "SelfReference",
    "Verdict",
]
