"""Rewards: what scores a response to a prompt, by rules, by models or by several of them."""

from typing import TYPE_CHECKING

from lit_tr.lazy import lazy
from lit_tr.rewards.base import Candidate, FunctionScorer, Reward, Scorer, as_scorer, explain
from lit_tr.rewards.ensemble import Ensemble
from lit_tr.rewards.gold import Gold
from lit_tr.rewards.overlap import Overlap
from lit_tr.rewards.relevance import Relevance
from lit_tr.rewards.reward_model import RewardModel
from lit_tr.rewards.white_box import WhiteBox

if TYPE_CHECKING:
    from lit_tr.rewards.collaborative import CollaborativePolicy, CollaborativeReward
    from lit_tr.rewards.training import BradleyTerry, RewardModule

__all__ = [
    "BradleyTerry",
    "Candidate",
    "CollaborativePolicy",
    "CollaborativeReward",
    "Ensemble",
    "FunctionScorer",
    "Gold",
    "Overlap",
    "Relevance",
    "Reward",
    "RewardModel",
    "RewardModule",
    "Scorer",
    "WhiteBox",
    "as_scorer",
    "explain",
]

TRAINED = {
    "training": ["BradleyTerry", "RewardModule"],
    "collaborative": ["CollaborativePolicy", "CollaborativeReward"],
}
__getattr__, _ = lazy(__name__, TRAINED)  # a scorer trains nothing
