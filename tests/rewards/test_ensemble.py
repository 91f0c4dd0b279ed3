import math

import numpy as np
import pytest

from lit_tr.errors import UserError
from lit_tr.evaluation.judges import ByScore, Pair
from lit_tr.rewards import Candidate, Ensemble, FunctionScorer, Overlap, WhiteBox
from lit_tr.rewards.ensemble import statistics

LONG = FunctionScorer(lambda prompt, response: 100.0 * len(response), "long")
EARLY = FunctionScorer(lambda prompt, response: -ord(response[0]), "early")
RESPONSES = [Candidate("", one) for one in ("aaaa", "b", "cc", "ddddd")]


def scores(how, **more):
    return Ensemble([LONG, EARLY], how, **more).score(RESPONSES)


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
    found = Ensemble([LONG, gaps], "worst").score(RESPONSES)
    assert [math.isnan(one) for one in found] == [False, True, False, False]
    assert statistics(np.array([math.nan, math.nan])) == (0.0, 1.0)
    assert statistics(np.array([3.0, 3.0])) == (3.0, 1.0)


def test_mistakes_are_named():
    assert Ensemble([LONG, EARLY]).name == "mean of long, early"
    with pytest.raises(UserError, match="at least two"):
        Ensemble([LONG])
    with pytest.raises(UserError, match="mean, worst, mean_less_variance, not by 'best'"):
        Ensemble([LONG, EARLY], "best")


def test_statistics_of_a_sample_are_kept_so_that_calls_compare(tmp_path):
    first = Ensemble([LONG, EARLY]).fit(RESPONSES)
    assert first.score(RESPONSES) == pytest.approx(by_hand().mean(0))
    assert first.score(RESPONSES[:1]) == pytest.approx(by_hand().mean(0)[:1])
    assert Ensemble([LONG, EARLY]).score(RESPONSES[:1]) == [0.0]  # of itself
    first.save(tmp_path / "fitted.json")
    second = Ensemble([LONG, EARLY], "worst", fitted=str(tmp_path / "fitted.json"))
    assert second.score(RESPONSES[1:3]) == pytest.approx(by_hand().min(0)[1:3])


def test_members_are_fitted_and_saved_too(tmp_path):
    words = [Candidate("a cold river", text) for text in ("the river is cold", "the castle is hot", "a river")]
    first = Ensemble([WhiteBox(), LONG]).fit(words)
    first.save(tmp_path / "fitted.json")
    second = Ensemble([WhiteBox(), LONG], fitted=str(tmp_path / "fitted.json"))
    assert second.score(words[:1]) == pytest.approx(first.score(words)[:1])
    assert second.members[0].score(words[:1]) == pytest.approx(WhiteBox().score(words)[:1])


def test_a_member_keeps_the_statistics_that_it_was_given(tmp_path):
    words = [Candidate("a cold river", text) for text in ("the river is cold", "a river", "the castle is hot")]
    fitted = str(tmp_path / "fitted.json")
    WhiteBox().fit(words[:2]).save(fitted)
    given = WhiteBox(fitted=fitted)
    before, state = given.score(words), given.state()
    inner = Ensemble([WhiteBox(), LONG]).fit(words[:2])
    inner.save(tmp_path / "inner.json")
    nested = Ensemble([WhiteBox(), LONG], fitted=str(tmp_path / "inner.json"))
    own = WhiteBox()
    Ensemble([given, nested, own]).fit(words)
    assert (given.state(), nested.state()) == (state, inner.state())
    assert given.score(words) == before != WhiteBox().fit(words).score(words)
    assert own.state() == WhiteBox().fit(words).state()


def test_members_are_told():
    [first, *_] = Ensemble([LONG, EARLY]).explain(RESPONSES)
    assert first == pytest.approx({"score": by_hand()[:, 0].mean(), "long": by_hand()[0, 0], "early": by_hand()[1, 0]})
    assert [*Ensemble([LONG, LONG]).explain(RESPONSES)[0]] == ["score", "long 1", "long 2"]


def test_statistics_that_are_not_its_own_are_refused(tmp_path):
    fitted = str(tmp_path / "fitted.json")
    with pytest.raises(UserError, match="no statistics of Ensemble to write; fit it"):
        Ensemble([LONG, EARLY]).save(fitted)
    Ensemble([LONG, EARLY]).fit(RESPONSES).save(fitted)
    with pytest.raises(UserError, match="of long, early, not of early, long"):
        Ensemble([EARLY, LONG], fitted=fitted)
    (tmp_path / "torn.json").write_text("{")
    for name in ("torn.json", "none.json"):
        with pytest.raises(UserError, match=f"{name}: these are no statistics of Ensemble"):
            Ensemble([LONG, EARLY], fitted=str(tmp_path / name))
    silent = FunctionScorer(lambda prompt, response: math.nan, "silent")
    with pytest.raises(UserError, match="silent: it gives no score to any of the 4"):
        Ensemble([LONG, silent]).fit(RESPONSES)
    with pytest.raises(UserError, match="no row has one"):
        Ensemble([LONG, Overlap()]).fit(RESPONSES)
