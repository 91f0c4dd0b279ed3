"""Win rates of one policy against another, and how far their judge can be trusted."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np

from lit_tr.errors import UserError
from lit_tr.evaluation.intervals import (
    Interval,
    Statistic,
    bootstrap_interval,
    by_prompt,
    interval_of_mean,
    standard_error,
)
from lit_tr.evaluation.judgements import Judgement
from lit_tr.evaluation.length_control import LengthControl

FEWER = 1_999
"""Resamples where each takes a fit."""


@dataclass(frozen=True)
class WinRates:
    """The figures of one criterion. Shares are in [0, 1]; intervals are 95 %, over prompts; each prompt counts once.

    Args:
        prompts: prompts with a pair whose preference is known.
        pairs: pairs whose preference is known.
        unparsable: answers that cannot be read, with A first and with B first.
        win_rate: mean preference for A; a tie counts one half.
        interval: its interval; None for one prompt.
        standard_error: of the mean over prompts (`ddof` 1).
        discrete_win_rate: share of pairs in which A is preferred, with one half for a tie.
        discrete_interval: its interval; Wilson's where there is no tie and each prompt has one pair.
        ties: share of pairs with a preference of exactly one half.
        length_controlled: win rate at equal lengths, by `lit_tr.evaluation.length_control`; None where lengths alone
            decide.
        length_controlled_interval: its interval.
        position_bias: mean of `p_ab + p_ba - 1`, with the probabilities that the response shown first is better: 1
            always prefers the first, -1 the second. None where one order was asked.
        position_bias_interval: its interval.
        agreement: share of pairs in which both orders prefer the same response.
        agreement_interval: its interval.
        repeatability: share of pairs judged twice that got the same winner twice.
        repeatability_interval: its interval.
    """

    prompts: int
    pairs: int
    unparsable: tuple[int, int]
    win_rate: float
    interval: Interval | None
    standard_error: float | None
    discrete_win_rate: float
    discrete_interval: Interval | None
    ties: float
    length_controlled: float | None
    length_controlled_interval: Interval | None
    position_bias: float | None = None
    position_bias_interval: Interval | None = None
    agreement: float | None = None
    agreement_interval: Interval | None = None
    repeatability: float | None = None
    repeatability_interval: Interval | None = None

    @property
    def is_biased(self) -> bool:
        """Whether the interval of the position bias is without 0."""
        return self.position_bias_interval is not None and not (
            self.position_bias_interval[0] <= 0 <= self.position_bias_interval[1]
        )


def win_rates(judgements: Sequence[Judgement], repeated: Sequence[Judgement] = ()) -> WinRates:
    """Return the figures of the judgements of one criterion.

    Args:
        judgements: of all pairs.
        repeated: some of the same pairs, judged once more.

    Raises:
        UserError: no judgement has a preference.
    """
    known = [one for one in judgements if one.preference is not None]
    if not known:
        raise UserError(f"none of the {len(judgements)} pairs has a preference: no answer of the judge can be read")
    ids = [one.id for one in known]
    rate = _rates(known)
    discrete = by_prompt(ids, [winner(float(one.preference or 0)) for one in known])
    controlled = _length_control(known)
    return WinRates(
        prompts=len(rate),
        pairs=len(known),
        unparsable=(sum(one.unparsable[0] for one in judgements), sum(one.unparsable[1] for one in judgements)),
        win_rate=mean(rate.values()),
        interval=interval_of_mean([*rate.values()]),
        standard_error=standard_error([*rate.values()]),
        discrete_win_rate=mean(discrete.values()),
        discrete_interval=interval_of_mean([*discrete.values()]),
        ties=mean(by_prompt(ids, [float(one.preference == 0.5) for one in known]).values()),
        **_with_interval("length_controlled", controlled.of, len(rate)),
        **_orders(known),
        **_repeatability(known, repeated),
    )


def winner(preference: float) -> float:
    """Return 1 where a preference is above one half, 0 where it is below, and 0.5 for a tie."""
    return (preference > 0.5) + 0.5 * (preference == 0.5)


def difference(ours: Sequence[Judgement], theirs: Sequence[Judgement]) -> dict[str, Any]:
    """Return our win rates less theirs, of two runs that were judged on the same prompts, with paired intervals.

    Prompts are drawn together for both runs, so what makes a prompt easy for both drops out.

    Returns:
        `prompts` (in both), `only_a` and `only_b` (prompts in one run alone), `win_rate` and `length_controlled` (the
        differences) with their intervals.

    Raises:
        UserError: no prompt is in both.
    """
    sides = [[one for one in side if one.preference is not None] for side in (ours, theirs)]
    rates = [_rates(side) for side in sides]
    both = sorted(rates[0].keys() & rates[1].keys())
    if not both:
        raise UserError("no prompt is judged in both runs: judge them on the same prompts")
    paired = np.array([rates[0][one] - rates[1][one] for one in both])
    first, second = (_length_control([one for one in side if one.id in {*both}]) for side in sides)
    return {
        "prompts": len(both),
        "only_a": len(rates[0]) - len(both),
        "only_b": len(rates[1]) - len(both),
        **_with_interval("win_rate", lambda drawn: paired[drawn].mean(-1), len(both)),
        **_with_interval("length_controlled", lambda drawn: first.of(drawn) - second.of(drawn), len(both)),
    }


def _rates(known: Sequence[Judgement]) -> dict[str, float]:
    return by_prompt([one.id for one in known], [float(one.preference or 0) for one in known])


def _with_interval(name: str, statistic: Statistic, prompts: int) -> dict[str, Any]:
    value = float(statistic(np.arange(prompts)))
    if math.isnan(value):
        return {name: None, f"{name}_interval": None}
    return {name: value, f"{name}_interval": bootstrap_interval(statistic, prompts, FEWER) if prompts > 1 else None}


def _length_control(known: Sequence[Judgement]) -> LengthControl:
    return LengthControl(
        [one.id for one in known],
        [float(one.preference or 0) for one in known],
        [len(one.response_a) for one in known],
        [len(one.response_b) for one in known],
    )


def _orders(judgements: Sequence[Judgement]) -> dict[str, Any]:
    """Return position bias and agreement of the pairs that were judged in both orders."""
    asked = [(one.id, one.orders[0], one.orders[1]) for one in judgements]
    both = [(one, ab, ba) for one, ab, ba in asked if ab is not None and ba is not None]
    if not both:
        return {}
    ids = [one for one, _, _ in both]
    bias = by_prompt(ids, [ab + ba - 1 for _, ab, ba in both])
    agree = by_prompt(ids, [float(winner(ab) == 1 - winner(ba)) for _, ab, ba in both])
    return {
        "position_bias": mean(bias.values()),
        "position_bias_interval": interval_of_mean([*bias.values()], lowest=-1.0),
        "agreement": mean(agree.values()),
        "agreement_interval": interval_of_mean([*agree.values()]),
    }


def _repeatability(known: Sequence[Judgement], repeated: Iterable[Judgement]) -> dict[str, Any]:
    first = {(one.id, one.sample): one.preference for one in known}
    twice = [one for one in repeated if one.preference is not None and (one.id, one.sample) in first]
    if not twice:
        return {}
    same = [float(winner(first[one.id, one.sample]) == winner(one.preference)) for one in twice]  # type: ignore[arg-type]
    values = [*by_prompt([one.id for one in twice], same).values()]
    return {"repeatability": mean(values), "repeatability_interval": interval_of_mean(values)}
