"""The gold reward of the embedded task, with its features."""

from collections.abc import Sequence
from dataclasses import dataclass

from lit_tr.embedded.task import Features as GoldFeatures
from lit_tr.embedded.task import GoldReward
from lit_tr.rewards.base import Candidate, Features


@dataclass(frozen=True)
class Gold(GoldReward):
    """The known reward of the embedded task as a scorer that tells its features; the weights are `GoldReward`'s."""

    name = "Gold"

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the reward of each response."""
        return [self(one.query, one.response) for one in candidates]

    def explain(self, candidates: Sequence[Candidate]) -> list[Features]:
        """Return the reward of each response as `score`, with the features that it weighs."""
        features = [vars(GoldFeatures.of(one.query, one.response)) for one in candidates]
        return [{"score": score, **those} for score, those in zip(self.score(candidates), features, strict=True)]
