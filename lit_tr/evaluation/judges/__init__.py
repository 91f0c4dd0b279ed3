"""Judges: what compares two responses to a prompt, or scores one."""

from lit_tr.evaluation.judges.base import ByScore, FunctionScorer, Judge, Pair, Scorer, Verdict

__all__ = ["ByScore", "FunctionScorer", "Judge", "Pair", "Scorer", "Verdict"]
