import random

import numpy as np
import pytest
from scipy import stats

from lit_tr.errors import UserError
from lit_tr.evaluation.intervals import wilson
from lit_tr.evaluation.judgements import Judgement, judge_all
from lit_tr.evaluation.judges import Pair, Verdict
from lit_tr.evaluation.win_rates import difference, win_rates


class Fixed:
    """A judge that says of the response shown first what it is told to."""

    name = "fixed"

    def __init__(self, first):
        self.first = first

    def compare(self, pairs):
        return [Verdict(*(self.first(*shown) for shown in both(pair))) for pair in pairs]


def both(pair):
    return (pair.response_a, pair.response_b), (pair.response_b, pair.response_a)


def pairs(count=50, samples=1):
    return [
        Pair(f"prompt {i}", "a" * (i + s + 1), "b" * (2 * i % 7 + 1), str(i), s)
        for i in range(count)
        for s in range(samples)
    ]


def judged(preferences, **more):
    return [Judgement(str(i), value, "aaa", "bb", **more) for i, value in enumerate(preferences)]


def test_a_judge_that_always_says_the_first_is_at_one_half_and_biased():
    found = win_rates(judge_all(Fixed(lambda first, second: 1.0), pairs()))
    assert (found.win_rate, found.interval, found.ties) == (0.5, (0.5, 0.5), 1.0)
    assert (found.position_bias, found.agreement) == (1.0, 0.0)
    low, high = wilson(50, 50)
    assert found.position_bias_interval == pytest.approx((2 * low - 1, 1.0))
    assert found.agreement_interval == wilson(0, 50)
    assert found.is_biased


def test_a_judge_without_bias_agrees_with_itself():
    found = win_rates(judge_all(Fixed(lambda first, second: float(len(first) > len(second))), pairs(40)))
    wins = sum(len(one.response_a) > len(one.response_b) for one in pairs(40))
    ties = sum(len(one.response_a) == len(one.response_b) for one in pairs(40))
    assert ties  # then it says "second" in both orders
    assert found.win_rate == pytest.approx((wins + ties / 2) / 40)
    assert found.agreement == pytest.approx(1 - ties / 40)
    assert found.position_bias == pytest.approx(-ties / 40)


def test_figures_by_hand():
    found = win_rates(judged([1.0, 0.5, 0.25, 0.75], orders=(None, None)))
    assert (found.prompts, found.pairs) == (4, 4)
    assert found.win_rate == 0.625
    assert found.standard_error == pytest.approx(stats.sem([1.0, 0.5, 0.25, 0.75]))
    assert (found.discrete_win_rate, found.ties) == (0.625, 0.25)
    assert (found.position_bias, found.agreement, found.repeatability) == (None, None, None)
    assert not found.is_biased


def test_counts_have_wilsons_interval():
    assert win_rates(judged([1.0] * 30 + [0.0] * 20)).interval == wilson(30, 50)
    found = win_rates(judged([0.9] * 30 + [0.2] * 20))
    assert found.discrete_interval == wilson(30, 50)
    assert found.interval[0] < found.win_rate < found.interval[1]


def test_samples_of_a_prompt_stay_together():
    """Copies of a prompt tell nothing new: the interval is that of the prompts."""
    values = np.random.default_rng(0).beta(0.5, 0.5, 30).tolist()
    once = win_rates(judged(values))
    copies = [Judgement(str(i), value, "aaa", "bb", sample=s) for i, value in enumerate(values) for s in range(4)]
    four = win_rates(copies)
    assert (four.prompts, four.pairs) == (30, 120)
    for name in ("win_rate", "standard_error", "length_controlled"):
        assert getattr(four, name) == pytest.approx(getattr(once, name))
    assert four.interval == pytest.approx(once.interval)
    assert four.length_controlled_interval == pytest.approx(once.length_controlled_interval)


def test_what_cannot_be_read_is_counted_by_order_and_left_out():
    said = [Judgement("0", 1.0, "a", "b", orders=(1.0, 0.0))]
    said += [Judgement(str(i), None, "a", "b", orders=(None, 0.0), unparsable=(1, 0)) for i in range(1, 4)]
    said += [Judgement("9", None, "a", "b", orders=(None, None), unparsable=(1, 1))]
    found = win_rates(said)
    assert (found.pairs, found.win_rate, found.unparsable) == (1, 1.0, (4, 1))
    assert (found.interval, found.standard_error) == (None, None)


def test_no_preference_at_all_is_a_mistake():
    with pytest.raises(UserError, match="none of the 2 pairs"):
        win_rates(judged([None, None]))


def test_repeatability_is_the_share_of_equal_winners():
    first = judged([0.9, 0.8, 0.2, 0.5])
    again = judged([0.6, 0.1, 0.3])
    found = win_rates(first, again)
    assert found.repeatability == pytest.approx(2 / 3)
    assert found.repeatability_interval == wilson(2, 3)


def test_the_difference_of_two_runs_is_paired():
    rng = np.random.default_rng(0)
    easy = rng.random(60)
    ours, theirs = judged(np.clip(easy + 0.1, 0, 1).tolist()), judged(easy.tolist())
    found = difference(ours, theirs)
    gains = np.clip(easy + 0.1, 0, 1) - easy
    assert found["win_rate"] == pytest.approx(gains.mean())
    low, high = found["win_rate_interval"]
    assert low > 0.08  # each run's own interval is wider by far
    assert high <= 0.1 + 1e-9
    alone = win_rates(ours).interval
    assert high - low < (alone[1] - alone[0]) / 5


def test_the_difference_is_over_the_prompts_of_both():
    ours, theirs = judged([1.0, 0.0, 1.0]), judged([0.0, 0.5, 0.5, 1.0])[1:]
    random.Random(0).shuffle(ours)
    found = difference(ours, theirs)
    assert (found["prompts"], found["only_a"], found["only_b"]) == (2, 1, 1)
    assert found["win_rate"] == pytest.approx((0.0 + 1.0) / 2 - 0.5)
    with pytest.raises(UserError, match="no prompt is judged in both"):
        difference(judged([1.0]), [Judgement("x", 1.0, "a", "b")])
