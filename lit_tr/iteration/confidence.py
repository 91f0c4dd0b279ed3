"""How sure a pair is: what several rewards say of the same candidates."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, Protocol

from lit_tr.errors import UserError
from lit_tr.evaluation.responses import Response, by_prompt
from lit_tr.iteration.pairing import Pairs, with_confidence
from lit_tr.rewards import Reward, as_scorer

Scores = Callable[[Reward, Sequence[Response]], list[float]]
"""From a reward and candidates to its scores of them, NaN where it has none."""


def scores_of(reward: Reward, candidates: Sequence[Response]) -> list[float]:
    """Return a reward's scores of candidates."""
    return as_scorer(reward).score([one.candidate for one in candidates])


class Confidence(Protocol):
    """Says with which probability the better response of each pair is better."""

    def __call__(self, pairs: Pairs, candidates: Sequence[Response], score: Scores = scores_of) -> Pairs:
        """Return the pairs with confidences.

        Args:
            pairs: the pairs.
            candidates: all candidates, with the scores that the pairs were made by.
            score: scores candidates by a reward; that of a round keeps the scores on the disk.
        """
        ...


@dataclass(frozen=True)
class RankAgreement:
    """Consistency of two rankings of the candidates of a prompt, as in CREAM (arXiv 2410.12735, Sec. 4).

    The confidence is `(tau + 1) / 2`, with Kendall's tau of the ranking by the round's reward and by another one. DPO
    with it is `C * loss(chosen, rejected) + (1 - C) * loss(rejected, chosen)`. In CREAM both are implicit rewards: of
    the policy, and of the one before it.

    Args:
        other: the reward of the other ranking. Equal scores keep the candidates' order.
        per: the mean over the `set`, or that of each `prompt`.
    """

    other: Reward
    per: Literal["set", "prompt"] = "set"

    def __call__(self, pairs: Pairs, candidates: Sequence[Response], score: Scores = scores_of) -> Pairs:
        """Return the pairs with confidences.

        Raises:
            UserError: no prompt has two candidates that both rewards score.
        """
        known = [one for one in candidates if one.score is not None]
        scores = zip(known, score(self.other, known), strict=True)
        theirs = {one.key: value for one, value in scores if not math.isnan(value)}
        agreed = {}
        for name, those in by_prompt(known).items():
            both = [(one.score or 0.0, theirs[one.key]) for one in those if one.key in theirs]
            if len(both) > 1:
                agreed[name] = consistency(*zip(*both, strict=True))
        if not agreed:
            raise UserError(f"RankAgreement: {as_scorer(self.other).name} scores no two candidates of any prompt")
        mean = fmean(agreed.values())
        return with_confidence(pairs, (mean if self.per == "set" else agreed.get(one.id, mean) for one in pairs.found))


def consistency(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return `(tau + 1) / 2` of the ordinal ranks of two lists of scores.

    Examples:
        >>> consistency([3.0, 2.0, 1.0], [0.3, 0.1, 0.2])  # two of three pairs in the same order: tau 1/3
        0.6666666666666667
    """
    from scipy.stats import kendalltau, rankdata

    tau = kendalltau(*(rankdata(side, method="ordinal") for side in (ours, theirs))).statistic
    return (float(tau) + 1) / 2


@dataclass(frozen=True)
class Votes:
    """The share of some rewards that prefer the chosen response, with one half for a tie: an empirical preference.

    `IREPO` (arXiv 2405.15230) regresses on its logit. A reward without a score for one of the two has no vote, and a
    pair without votes has 1/2.

    Args:
        judges: the rewards, several.

    Raises:
        UserError: there are fewer than two.
    """

    judges: Sequence[Reward]

    def __post_init__(self) -> None:
        if len(self.judges) < 2:
            raise UserError("Votes: give two judges or more; one alone is always sure")

    def __call__(self, pairs: Pairs, candidates: Sequence[Response], score: Scores = scores_of) -> Pairs:
        """Return the pairs with confidences."""
        sides = [[(one.id, text) for text in (one.chosen, one.rejected)] for one in pairs.found]
        paired = {side for both in sides for side in both}
        those = {(one.id, one.response): one for one in candidates if (one.id, one.response) in paired}
        by_judge = [dict(zip(those, score(judge, [*those.values()]), strict=True)) for judge in self.judges]
        margins = [[known[ours] - known[theirs] for known in by_judge] for ours, theirs in sides]
        return with_confidence(pairs, map(_share, margins))


def _share(margins: Sequence[float]) -> float:
    votes = [(margin > 0) + 0.5 * (margin == 0) for margin in margins if not math.isnan(margin)]
    return fmean(votes) if votes else 0.5
