import math

import numpy as np
import pytest

from lit_tr.errors import UserError
from lit_tr.evaluation.judges import ByScore, Ensemble, FunctionScorer, Pair
from lit_tr.evaluation.judges.ensemble import standardised

LONG = FunctionScorer(lambda prompt, response: 100.0 * len(response), "long")
EARLY = FunctionScorer(lambda prompt, response: -ord(response[0]), "early")
RESPONSES = ["aaaa", "b", "cc", "ddddd"]


def scores(how, **more):
    return Ensemble([LONG, EARLY], how, **more).score([""] * 4, RESPONSES)


def by_hand():
    raw = np.array([[4.0, 1, 2, 5], [-97.0, -98, -99, -100]])
    return (raw - raw.mean(1, keepdims=True)) / raw.std(1, keepdims=True)


def test_members_are_standardised():
    assert scores("mean") == pytest.approx(by_hand().mean(0))
    assert scores("worst") == pytest.approx(by_hand().min(0))
    assert scores("mean_less_variance", weight=0.3) == pytest.approx(by_hand().mean(0) - 0.3 * by_hand().var(0))


def test_both_sides_of_pairs_are_standardised_together():
    pairs = [Pair("", "aaaa", "b"), Pair("", "cc", "ddddd")]
    verdicts = ByScore(Ensemble([LONG, EARLY])).compare(pairs)
    a, b, c, d = by_hand().mean(0)
    assert [one.preference for one in verdicts] == [float(a > b), float(c > d)]


def test_what_a_member_does_not_score_has_no_score():
    gaps = FunctionScorer(lambda prompt, response: math.nan if response == "b" else 1.0, "gaps")
    found = Ensemble([LONG, gaps], "worst").score([""] * 4, RESPONSES)
    assert [math.isnan(one) for one in found] == [False, True, False, False]
    assert np.isnan(standardised([math.nan, math.nan])).all()
    assert standardised([3.0, 3.0]).tolist() == [0.0, 0.0]


def test_mistakes_are_named():
    assert Ensemble([LONG, EARLY]).name == "mean of long, early"
    with pytest.raises(UserError, match="at least two"):
        Ensemble([LONG])
    with pytest.raises(UserError, match="mean, worst, mean_less_variance, not by 'best'"):
        Ensemble([LONG, EARLY], "best")
