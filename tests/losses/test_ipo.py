import pytest
import torch

from lit_tr.losses import IPO
from tests.losses.examples import CHOSEN, UNCERTAIN, drawn, gives


def test_it_sums_over_tokens_by_default():
    # margins 3 and -2, drawn to 1 / (2 * 0.25) = 2
    gives(IPO(beta=0.25), [1, 16], [2, -8], [-2, 8])
    assert IPO(0.5).rewards(CHOSEN).tolist() == [1, -0.5]


def test_a_mean_over_tokens():
    # margins 2 / 2 + 1 / 5 = 1.2 and -1 / 4 - 1 / 1 = -1.25
    chosen, rejected = [-2 * 0.8 / 2, -2 * 3.25 / 4], [2 * 0.8 / 5, 2 * 3.25]
    gives(IPO(beta=0.25, average="mean"), [0.8**2, 3.25**2], chosen, rejected)
    assert IPO(0.5, "mean").rewards(CHOSEN).tolist() == [0.5, -0.125]


def test_uncertain_labels_by_hand():
    # margins 3 and -2 against 2: 1 and 16; of the other label, -3 and 2 against 2: 25 and 0
    gives(IPO(beta=0.25), [0.9 * 1 + 0.1 * 25, 0.5 * 16 + 0.5 * 0], **UNCERTAIN)


def test_certain_labels_change_no_bit():
    chosen, rejected = drawn()
    before = (chosen.log_ratios - rejected.log_ratios - 1 / (2 * 0.05)) ** 2
    assert torch.equal(IPO()(chosen, rejected), before)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_with_a_mean_values_and_gradients_are_those_of_trl(trl, beta):
    trl(IPO(beta=beta, average="mean"), "ipo", beta)
