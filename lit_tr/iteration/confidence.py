"""How sure a pair is: what several rewards say of the same candidates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, Protocol

from lit_tr.errors import UserError
from lit_tr.evaluation.responses import Response, by_prompt
from lit_tr.iteration.pairing import Pairs, with_confidence
from lit_tr.rewards import Candidate, Reward, as_scorer


class Confidence(Protocol):
    """Says with which probability the better response of each pair is better."""

    def __call__(self, pairs: Pairs, candidates: Sequence[Response]) -> Pairs:
        """Return the pairs with confidences, given all scored candidates."""
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

    def __call__(self, pairs: Pairs, candidates: Sequence[Response]) -> Pairs:
        """Return the pairs with confidences.

        Raises:
            UserError: no prompt has two candidates that both rewards score.
        """
        scorer = as_scorer(self.other)
        known = [one for one in candidates if one.score is not None]
        scores = scorer.score([one.candidate for one in known])
        theirs = {one.key: score for one, score in zip(known, scores, strict=True) if not math.isnan(score)}
        agreed = {}
        for name, those in by_prompt(known).items():
            both = [(one.score or 0.0, theirs[one.key]) for one in those if one.key in theirs]
            if len(both) > 1:
                agreed[name] = consistency(*zip(*both, strict=True))
        if not agreed:
            raise UserError(f"RankAgreement: {scorer.name} scores no two candidates of any prompt")
        mean = fmean(agreed.values())
        sure = {name: mean if self.per == "set" else value for name, value in agreed.items()}
        return with_confidence(
            pairs, {(one.id, one.chosen, one.rejected): sure.get(one.id, mean) for one in pairs.found}
        )


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

    `IREPO` (arXiv 2405.15230) regresses on its logit. A reward without a score for one of the two has no vote.

    Args:
        judges: the rewards, several.

    Raises:
        UserError: there are fewer than two.
    """

    judges: Sequence[Reward]

    def __post_init__(self) -> None:
        if len(self.judges) < 2:
            raise UserError("Votes: give two judges or more; one alone is always sure")

    def __call__(self, pairs: Pairs, candidates: Sequence[Response]) -> Pairs:
        """Return the pairs with confidences."""
        by_key = {(one.id, one.response): one.candidate for one in candidates}
        sides: list[list[Candidate]] = [
            [by_key[one.id, text(one)] for one in pairs.found]
            for text in (lambda one: one.chosen, lambda one: one.rejected)
        ]
        votes: list[list[float]] = [[] for _ in pairs.found]
        for scorer in map(as_scorer, self.judges):
            scores = scorer.score([*sides[0], *sides[1]])
            for one, ours, theirs in zip(votes, scores, scores[len(votes) :], strict=False):
                one += [] if math.isnan(ours - theirs) else [(ours > theirs) + 0.5 * (ours == theirs)]
        shares = [fmean(one) if one else 0.5 for one in votes]
        return with_confidence(
            pairs, {(one.id, one.chosen, one.rejected): share for one, share in zip(pairs.found, shares, strict=True)}
        )
