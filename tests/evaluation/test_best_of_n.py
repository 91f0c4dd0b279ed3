"""The best of N against brute force, and against the integral of order statistics."""

import itertools
import math
from statistics import mean

import pytest
from scipy import integrate

from lit_tr.errors import UserError
from lit_tr.evaluation.best_of_n import expected_best, frontier, kl_bound, weights

SCORES = [0.3, -1.0, 2.5, 2.5, 0.0, 1.75, -4.0]


@pytest.mark.parametrize("n", range(1, len(SCORES) + 1))
def test_the_expected_best_is_the_mean_over_all_subsets(n):
    subsets = list(itertools.combinations(SCORES, n))
    assert len(subsets) == math.comb(len(SCORES), n)
    assert expected_best(SCORES, n) == pytest.approx(mean(map(max, subsets)), abs=1e-12)


def test_weights_are_probabilities_also_of_many_samples():
    for n in (1, 50, 999, 2000):
        assert math.fsum(weights(2000, n)) == pytest.approx(1)
        assert min(weights(2000, n)) >= 0


@pytest.mark.parametrize("n", [1, 2, 5, 16])
def test_the_bound_is_the_divergence_of_the_best_of_n_of_a_continuous_score(n):
    """The quantile of the best of n has density n u^(n-1) on [0, 1]; its divergence from the uniform is integrated."""

    def integrand(u):
        density = n * u ** (n - 1)
        return density * math.log(density)

    divergence, _ = integrate.quad(integrand, 1e-12, 1)
    assert kl_bound(n) == pytest.approx(divergence, abs=1e-6)


def test_the_bound_is_not_below_the_divergence_where_scores_are_equal():
    """Of two responses, of score 0 and 1, with probabilities 0.7 and 0.3, the best of n is 0 with 0.7^n."""
    for n in (1, 2, 4, 8):
        worse = 0.7**n
        divergence = worse * math.log(worse / 0.7) + (1 - worse) * math.log((1 - worse) / 0.3)
        assert divergence <= kl_bound(n) + 1e-12


def test_a_frontier_has_the_powers_of_two_and_intervals_over_prompts():
    points = frontier([[0.0, 1.0, 2.0, 3.0], [1.0, 1.0, 1.0, 1.0, 9.0]])
    assert [point.n for point in points] == [1, 2, 4]
    assert points[0].kl == 0
    assert points[-1].score.value == pytest.approx((3 + 0.2 * 1 + 0.8 * 9) / 2)
    first = [1.5, 2.6]  # Student's interval of two values: half their distance times 12.7062
    assert points[0].score.value == pytest.approx(mean(first))
    assert points[0].score.high - mean(first) == pytest.approx(12.7062 * 0.55, rel=1e-5)


def test_more_than_the_samples_is_a_mistake():
    with pytest.raises(UserError, match="best of 3: a prompt has 2 scored samples"):
        expected_best([1.0, 2.0], 3)
