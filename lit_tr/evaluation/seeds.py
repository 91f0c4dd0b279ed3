"""Means over seeds or prompts, with their intervals."""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Mean(NamedTuple):
    """A mean and its 95 % interval; both ends are NaN where one value tells nothing of the spread."""

    value: float
    low: float
    high: float


def mean_of(values: Sequence[float]) -> Mean:
    """Return the mean of independent values and Student's 95 % interval.

    Examples:
        >>> [round(value, 3) for value in mean_of([1.0, 2.0, 3.0])]
        [2.0, -0.484, 4.484]
    """
    from scipy import stats

    center = math.fsum(values) / len(values)
    if len(values) == 1:
        return Mean(center, math.nan, math.nan)
    error = float(stats.sem(values))
    if error == 0:
        return Mean(center, center, center)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=center, scale=error)
    return Mean(center, float(low), float(high))
