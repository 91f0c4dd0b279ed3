"""How far a reward agrees with the labels of pairs, and with another reward."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch

from lit_tr.evaluation.calibration import calibration_error, temperature_of
from lit_tr.evaluation.intervals import Interval, wilson
from lit_tr.evaluation.kl import over_prompts
from lit_tr.evaluation.responses import Response
from lit_tr.evaluation.scored import Responses


@dataclass(frozen=True)
class Agreement:
    """How far a reward agrees with the labels of pairs.

    Args:
        pairs: pairs whose responses both have a score.
        agreement: share of them whose chosen response has the higher score; a tie counts 1/2.
        interval: its 95 % interval, Wilson's.
        calibration_error: of the probability `sigmoid(difference)`, see `calibration.calibration_error`.
        temperature: what differences are divided by so that this probability fits the labels best, of these pairs or of
            others.
        calibration_error_at_temperature: the error with it, on these pairs. A temperature of the same pairs flatters.
    """

    pairs: int
    agreement: float
    interval: Interval
    calibration_error: float
    temperature: float
    calibration_error_at_temperature: float


def agreement(
    chosen: Sequence[Response], rejected: Sequence[Response], temperature: float | None = None
) -> Agreement | None:
    """Return how far scores agree with labels; None where no pair has both scores.

    Args:
        chosen: the chosen responses, with scores.
        rejected: the rejected ones, in the same order.
        temperature: that of other pairs; None fits it to these.
    """
    margins = torch.tensor([a - b for a, b in _both(chosen, rejected)], dtype=torch.float64)
    if not len(margins):
        return None
    right = (margins.sign() + 1).sum().item() / 2
    fitted = temperature_of(margins) if temperature is None else temperature
    errors = calibration_error(margins), calibration_error(margins / fitted)
    return Agreement(len(margins), right / len(margins), wilson(right, len(margins)), errors[0], fitted, errors[1])


def mean_scores(responses: Responses) -> dict[str, dict[str, Any]]:
    """Return by policy `responses`, `unscored`, and of the scores `mean` and `standard_error` over prompts."""
    found = {}
    for name, those in responses.by_policy.items():
        known = [(one.score, one.id) for one in those if one.score is not None]
        figures: dict[str, Any] = {"responses": len(those), "unscored": len(those) - len(known)}
        if known:
            mean = over_prompts(*zip(*known, strict=True))
            error = None if math.isnan(mean.standard_error) else mean.standard_error
            figures |= {"mean": mean.mean, "standard_error": error}
        found[name] = figures
    return found


def rank_correlations(ours: Responses, theirs: Responses) -> dict[str, dict[str, Any]]:
    """Return Spearman's rank correlation of two rewards, over `responses` and over `policies`.

    That over policies, such as the checkpoints of a run, is of their mean scores: the measure of Kim and Seo 2024
    (arXiv 2402.03469) for whether a proxy reward does as the gold reward does.

    Args:
        ours: responses with the scores of one reward.
        theirs: the same with those of the other.

    Returns:
        For each `count`, and `rho`, which is None for fewer than three, or where all scores of one are equal.
    """
    pairs = [_both(those, theirs.by_policy[name]) for name, those in ours.by_policy.items()]
    means = [tuple(map(fmean, zip(*some, strict=True))) for some in pairs if some]
    return {"responses": _spearman([pair for some in pairs for pair in some]), "policies": _spearman(means)}


def _both(ours: Sequence[Response], theirs: Sequence[Response]) -> list[tuple[float, float]]:
    """Return the scores of responses that both have scored."""
    scores = ((a.score, b.score) for a, b in zip(ours, theirs, strict=True))
    return [(a, b) for a, b in scores if a is not None and b is not None]


def _spearman(pairs: Sequence[Sequence[Any]]) -> dict[str, Any]:
    from scipy.stats import spearmanr

    if len(pairs) < 3 or any(len({*side}) == 1 for side in zip(*pairs, strict=True)):
        return {"count": len(pairs), "rho": None}
    return {"count": len(pairs), "rho": float(spearmanr(*zip(*pairs, strict=True)).statistic)}
