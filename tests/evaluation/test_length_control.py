import numpy as np
import pytest
import statsmodels.api as sm
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from lit_tr.evaluation.intervals import bootstrap_interval
from lit_tr.evaluation.length_control import LengthControl, fit


def rows(count=300, seed=0):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(20, 900, (2, count))
    preferences = expit(0.4 + 1.5 * np.tanh((a - b) / 400) + rng.normal(size=count))
    return [str(i) for i in range(count)], preferences, a, b


def features(a, b):
    difference = (b - a).astype(float)
    return np.tanh(difference / difference.std(ddof=1))


def win_rate(control):
    return float(control.of(np.arange(len(control.names))))


def test_it_is_statsmodels_fit():
    ids, preferences, a, b = rows()
    design = sm.add_constant(features(a, b))
    fitted = sm.GLM(preferences, design, family=sm.families.Binomial()).fit(tol=1e-12)
    assert win_rate(LengthControl(ids, preferences, a, b)) == pytest.approx(expit(fitted.params[0]), abs=1e-9)


def test_it_is_sklearns_fit_of_each_row_twice():
    ids, preferences, a, b = rows()
    design = features(a, b)[:, None]
    model = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000).fit(
        np.concatenate([design, design]),
        np.repeat([1, 0], len(ids)),
        sample_weight=np.concatenate([preferences, 1 - preferences]),
    )
    assert win_rate(LengthControl(ids, preferences, a, b)) == pytest.approx(expit(model.intercept_[0]), abs=1e-6)


def test_the_order_of_rows_says_nothing():
    ids, preferences, a, b = rows()
    order = np.random.default_rng(1).permutation(len(ids))
    shuffled = LengthControl([ids[i] for i in order], preferences[order], a[order], b[order])
    assert win_rate(shuffled) == pytest.approx(win_rate(LengthControl(ids, preferences, a, b)), abs=1e-12)


def test_each_prompt_counts_once():
    ids, preferences, a, b = rows(60)
    ids = [str(int(one) // 2) if int(one) < 20 else one for one in ids]  # ten prompts of two samples
    weights = [0.5] * 20 + [1.0] * 40
    design = sm.add_constant(features(a, b))
    fitted = sm.GLM(preferences, design, family=sm.families.Binomial(), freq_weights=weights).fit(tol=1e-12)
    assert win_rate(LengthControl(ids, preferences, a, b)) == pytest.approx(expit(fitted.params[0]), abs=1e-9)


def test_resamples_are_fits_of_the_prompts_drawn():
    ids, preferences, a, b = rows(30)
    drawn = np.random.default_rng(2).integers(0, 30, (3, 30))
    control = LengthControl(ids, preferences, a, b)
    numbers = control.names.astype(int)
    design = sm.add_constant(features(a, b))
    expected = [
        expit(sm.GLM(preferences[rows], design[rows], family=sm.families.Binomial()).fit(tol=1e-12).params[0])
        for rows in numbers[drawn]
    ]
    assert control.of(drawn) == pytest.approx(expected, abs=1e-8)


def test_equal_lengths_leave_the_win_rate():
    control = LengthControl(["a", "b", "c"], [0.2, 0.9, 0.7], [5, 5, 5], [9, 9, 9])
    assert win_rate(control) == pytest.approx(0.6)


@pytest.mark.parametrize("target", [0.0, 1.0])
def test_a_side_that_always_wins(target):
    _, _, a, b = rows(40)
    control = LengthControl([str(i) for i in range(40)], [target] * 40, a, b)
    assert win_rate(control) == pytest.approx(target, abs=1e-9)


def test_lengths_that_decide_alone_leave_nothing_to_fit():
    bias, _ = fit(np.array([0.001, 0.002, 0.003]), np.array([0.0, 0.0, 1.0]), np.ones((1, 3)))
    assert np.isnan(bias).all()


def test_the_interval_is_about_that_of_robust_errors():
    ids, preferences, a, b = rows()
    control = LengthControl(ids, preferences, a, b)
    design = sm.add_constant(features(a, b))
    robust = sm.GLM(preferences, design, family=sm.families.Binomial()).fit(cov_type="HC1")
    low, high = bootstrap_interval(control.of, len(ids), 1_999)
    assert (low, high) == pytest.approx(tuple(expit(robust.conf_int()[0])), abs=0.01)


@pytest.mark.slow
def test_intervals_cover_what_they_claim():
    """95 % nominal, in 500 simulations of 100 prompts; the true figure is that of a large sample."""
    true = win_rate(LengthControl(*rows(200_000, seed=10_000)))
    controls = [LengthControl(*rows(100, seed)) for seed in range(500)]
    found = [bootstrap_interval(control.of, 100, 999) for control in controls]
    covered = sum(low <= true <= high for low, high in found)
    print(f"{covered} of 500")
    assert 0.93 * 500 <= covered <= 0.97 * 500
