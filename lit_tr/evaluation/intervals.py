"""Confidence intervals over prompts: the samples and orders of a prompt stay together."""

from collections.abc import Callable, Sequence
from math import sqrt
from statistics import NormalDist

import numpy as np

Interval = tuple[float, float]
Statistic = Callable[[np.ndarray], np.ndarray]
"""From numbers of prompts (..., prompts), drawn with replacement, to figures (...)."""

LEVEL, RESAMPLES, SEED = 0.95, 9_999, 0
BATCH = 100
"""Resamples that are computed at once; it bounds memory."""


def by_prompt(ids: Sequence[str], values: Sequence[float]) -> dict[str, float]:
    """Return the mean of each prompt's values, by id, in the order in which ids come first.

    Examples:
        >>> by_prompt(["a", "b", "a"], [1.0, 0.25, 0.0])
        {'a': 0.5, 'b': 0.25}
    """
    found: dict[str, list[float]] = {}
    for one, value in zip(ids, values, strict=True):
        found.setdefault(one, []).append(value)
    return {one: sum(all_of) / len(all_of) for one, all_of in found.items()}


def interval_of_mean(values: Sequence[float], lowest: float = 0.0, highest: float = 1.0) -> Interval | None:
    """Return the 95 % interval of a mean over prompts; None for fewer than two.

    Where each prompt has the lowest or the highest value, the mean is a share of counts: Wilson's interval (1927),
    which holds at 0 and 1, too. Else it is that of `bootstrap_interval`.

    Args:
        values: a value for each prompt, all its samples and orders averaged.
        lowest: least value that a prompt can have.
        highest: greatest value that it can have.
    """
    sample = np.asarray(values, dtype=float)
    if len(sample) < 2:
        return None
    at_top = sample == highest
    if (at_top | (sample == lowest)).all():
        low, high = wilson(int(at_top.sum()), len(sample))
        return lowest + low * (highest - lowest), lowest + high * (highest - lowest)
    return bootstrap_interval(lambda drawn: sample[drawn].mean(-1), len(sample))


def wilson(hits: float, count: int, confidence: float = LEVEL) -> Interval:
    """Return the Wilson interval of a share, in [0, 1].

    Wilson 1927 (https://doi.org/10.1080/01621459.1927.10502953), without correction for continuity. It is written out
    here because ties are half hits, and scipy's takes whole ones.

    Args:
        hits: how many of them hit; a tie may count 1/2.
        count: how many there are, at least 1.
        confidence: how often such an interval holds the probability.

    Examples:
        >>> [round(bound, 4) for bound in wilson(8, 10)]
        [0.4902, 0.9433]
    """
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, scale = hits / count, 1 + z**2 / count
    middle = (share + z**2 / (2 * count)) / scale
    half = z / scale * sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(middle - half, 0.0), min(middle + half, 1.0)


def bootstrap_interval(statistic: Statistic, prompts: int, resamples: int = RESAMPLES) -> Interval | None:
    """Return the 95 % interval of a figure by the bootstrap over prompts, bias-corrected and accelerated.

    That is `scipy.stats.bootstrap` (BCa, Efron 1987) with a fixed seed. A figure that is the same in all resamples has
    an interval of one point; None where it is not finite.

    Args:
        statistic: from numbers of prompts, drawn with replacement, to figures.
        prompts: how many prompts there are.
        resamples: how many times they are drawn.
    """
    from warnings import catch_warnings, simplefilter

    from scipy.stats import DegenerateDataWarning, bootstrap

    numbers = np.arange(prompts)
    with catch_warnings():
        simplefilter("ignore", DegenerateDataWarning)  # equal figures are looked for below
        simplefilter("ignore", RuntimeWarning)
        done = bootstrap(
            (numbers,),
            lambda drawn, axis: statistic(np.moveaxis(drawn, axis, -1).astype(int)),
            n_resamples=resamples,
            batch=BATCH,
            vectorized=True,
            confidence_level=LEVEL,
            method="BCa",
            rng=np.random.default_rng(SEED),
        )
    low, high = (float(bound) for bound in done.confidence_interval)
    if np.ptp(done.bootstrap_distribution) < 1e-12:
        low = high = float(statistic(numbers))
    return (low, high) if np.isfinite([low, high]).all() else None


def standard_error(values: Sequence[float]) -> float | None:
    """Return the standard error of a mean over prompts (`ddof` 1); None for fewer than two."""
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
