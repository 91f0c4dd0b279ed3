"""Rewards: what scores a response to a prompt, by rules, by models or by several of them."""

from lit_tr.rewards.base import Candidate, FunctionScorer, Reward, Scorer, as_scorer, explain
from lit_tr.rewards.ensemble import Ensemble
from lit_tr.rewards.gold import Gold
from lit_tr.rewards.overlap import Overlap
from lit_tr.rewards.relevance import Relevance
from lit_tr.rewards.reward_model import RewardModel
from lit_tr.rewards.white_box import WhiteBox

__all__ = [
    "Candidate",
    "Ensemble",
    "FunctionScorer",
    "Gold",
    "Overlap",
    "Relevance",
    "Reward",
    "RewardModel",
    "Scorer",
    "WhiteBox",
    "as_scorer",
    "explain",
]
