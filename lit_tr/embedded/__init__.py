"""The model and the task that ship with the package."""

from lit_tr.embedded.model import TINY, resolve
from lit_tr.embedded.task import GoldReward, SyntheticPairs

__all__ = ["TINY", "GoldReward", "SyntheticPairs", "resolve"]
