import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from lit_tr.evaluation.intervals import bootstrap_interval, by_prompt, interval_of_mean, standard_error, wilson


def test_wilson_is_that_of_statsmodels():
    for count, total in ((0, 5), (3, 7), (50, 50), (120, 805)):
        assert wilson(count, total) == pytest.approx(proportion_confint(count, total, method="wilson"), abs=1e-12)


def test_prompts_are_averaged_in_their_order():
    assert [*by_prompt(["b", "a", "b"], [1, 0.25, 0]).items()] == [("b", 0.5), ("a", 0.25)]


def test_values_at_both_ends_are_counts():
    assert interval_of_mean([1, 0, 1, 1]) == wilson(3, 4)
    low, high = wilson(3, 4)
    assert interval_of_mean([1, -1, 1, 1], lowest=-1.0) == pytest.approx((2 * low - 1, 2 * high - 1))
    assert interval_of_mean([1.0] * 50) == wilson(50, 50)


def test_other_values_are_scipys_bootstrap():
    values = np.random.default_rng(1).beta(0.5, 0.5, 40)
    expected = stats.bootstrap((values,), np.mean, rng=np.random.default_rng(0), batch=100).confidence_interval
    assert interval_of_mean(values) == pytest.approx(tuple(expected))


def test_equal_values_have_an_interval_of_one_point():
    assert interval_of_mean([0.5] * 10) == (0.5, 0.5)


def test_too_few_prompts_have_none():
    assert interval_of_mean([0.3]) is None
    assert standard_error([0.3]) is None
    assert standard_error([0.0, 1.0]) == pytest.approx(stats.sem([0.0, 1.0]))


def test_a_figure_that_is_no_number_has_no_interval():
    assert bootstrap_interval(lambda drawn: np.full(drawn.shape[:-1], np.nan), 5) is None


def binary(rng, prompts):
    return (rng.random(prompts) < 0.6).astype(float), 0.6


def both_orders(rng, prompts):
    likely = rng.beta(2, 2, prompts)
    return rng.binomial(2, likely) / 2, 0.5


def soft(rng, prompts):
    return rng.beta(0.3, 0.2, prompts), 0.6


def three_samples(rng, prompts):
    likely = rng.beta(1, 2, prompts)
    return rng.binomial(3, likely) / 3, 1 / 3


@pytest.mark.slow
@pytest.mark.parametrize("draw", [binary, both_orders, soft, three_samples])
@pytest.mark.parametrize("prompts", [50, 200])
def test_intervals_cover_what_they_claim(draw, prompts):
    """95 % nominal, in 1,000 simulations; 2,000 resamples each."""
    rng, covered = np.random.default_rng(0), 0
    for _ in range(1000):
        values, true = draw(rng, prompts)
        if np.isin(values, (0, 1)).all():
            low, high = interval_of_mean(values)
        else:
            low, high = bootstrap_interval(lambda drawn, values=values: values[drawn].mean(-1), prompts, 1_999)
        covered += low <= true <= high
    print(f"{draw.__name__}, {prompts} prompts: {covered} of 1,000")
    assert 930 <= covered <= 970
