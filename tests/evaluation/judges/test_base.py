import math

import pytest

from lit_tr.embedded import GoldReward
from lit_tr.errors import UserError
from lit_tr.evaluation.judges import ByScore, FunctionScorer, Judge, Pair, Scorer, Verdict

RIVER = "Describe a cold river."
ICY, HOT = "The river is icy. It looks cold and frozen.", "The castle is hot. The castle is hot."


def lengths(prompt, response):
    return len(response)


def test_a_verdict_is_the_mean_of_the_orders_asked():
    assert Verdict(0.8, 0.4).preference == pytest.approx(0.7)
    assert Verdict(0.8).preference == 0.8
    assert Verdict(0.8, None, (0, 1)).preference is None
    assert Verdict(None, None, (1, 1)).preference is None
    assert Verdict(None).preference is None


def test_the_gold_reward_is_a_judge():
    judge = ByScore(FunctionScorer(GoldReward()))
    pairs = [Pair(RIVER, ICY, HOT), Pair([{"role": "user", "content": RIVER}], HOT, ICY), Pair(RIVER, ICY, ICY)]
    assert [one.preference for one in judge.compare(pairs)] == [1.0, 0.0, 0.5]
    assert judge.name == "GoldReward"
    assert isinstance(judge, Judge)
    assert not isinstance(judge, Scorer)
    assert isinstance(judge.scorer, Scorer)


def test_a_temperature_makes_it_bradley_terry():
    judge = ByScore(FunctionScorer(lengths), temperature=2.0)
    assert judge.compare([Pair("", "aaaa", "a")])[0].preference == pytest.approx(1 / (1 + math.exp(-1.5)))
    with pytest.raises(UserError, match="temperature"):
        ByScore(FunctionScorer(lengths), -1.0)


def test_a_score_that_is_no_number_is_counted():
    judge = ByScore(FunctionScorer(lambda prompt, response: math.nan if response == "?" else 1.0, name="mine"))
    [verdict] = judge.compare([Pair("", "?", "x")])
    assert (verdict.preference, verdict.unparsable) == (None, (1, 0))
    assert judge.name == "mine"
