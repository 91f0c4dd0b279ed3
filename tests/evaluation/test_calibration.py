import math

import numpy as np
import pytest
import torch

from lit_tr.evaluation.calibration import calibration_error, temperature_of


def by_numpy(margins, bins):
    """Confidence in [1/2, 1] against correctness, in bins of equal width."""
    confidence = 1 / (1 + np.exp(-np.abs(margins)))
    right, at = margins > 0, np.clip(((confidence - 0.5) * 2 * bins).astype(int), 0, bins - 1)
    of_each = [abs(right[at == i].sum() - confidence[at == i].sum()) for i in range(bins)]
    return sum(of_each) / len(margins)


@pytest.mark.parametrize(("pairs", "bins"), [(5, 1), (35, 3), (99, 9), (1000, 10)])
def test_bins_are_fewer_where_pairs_are_few(pairs, bins):
    margins = np.random.default_rng(pairs).normal(0.3, 2, pairs)
    assert calibration_error(torch.tensor(margins)) == pytest.approx(by_numpy(margins, bins), abs=1e-6)


def test_pairs_that_are_as_right_as_sure_are_calibrated():
    rng = np.random.default_rng(0)
    margins = np.abs(rng.normal(0, 2, 20_000))
    holds = rng.random(len(margins)) < 1 / (1 + np.exp(-margins))
    signed = torch.tensor(np.where(holds, margins, -margins))
    assert calibration_error(signed) < 0.01
    assert calibration_error(5 * signed) > 0.15  # too sure


def test_ties_are_half_right():
    assert calibration_error(torch.zeros(64)) == 0
    assert calibration_error(torch.full((64,), -20.0)) == pytest.approx(1, abs=1e-4)  # sure, and always wrong


def test_the_temperature_is_found_again():
    rng = np.random.default_rng(0)
    margins = np.abs(rng.normal(0, 2, 20_000))
    holds = rng.random(len(margins)) < 1 / (1 + np.exp(-margins))
    signed = torch.tensor(np.where(holds, margins, -margins))
    for scale in (0.01, 1.0, 300.0):
        assert temperature_of(scale * signed) == pytest.approx(scale, rel=0.05)


def test_a_temperature_is_finite_where_labels_do_not_bound_it():
    assert temperature_of(torch.tensor([1.0, 3.0])) == pytest.approx(0.02, rel=0.01)  # always right
    assert temperature_of(torch.tensor([-1.0, -3.0])) == pytest.approx(200, rel=0.01)
    assert math.isfinite(temperature_of(torch.zeros(3)))
