import numpy as np
import pytest
import torch

from lit_tr.evaluation.calibration import calibration_error


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
