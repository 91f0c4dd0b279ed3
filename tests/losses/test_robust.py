import pytest
import torch

from lit_tr.errors import UserError
from lit_tr.losses import DPO, RobustDPO
from tests.losses.examples import drawn, equal, gives, log_sigmoid, sigmoid


def value(x):
    return -(0.8 * log_sigmoid(x) - 0.2 * log_sigmoid(-x)) / 0.6


def test_by_hand():
    gradient = [0.5 * (0.8 * sigmoid(-x) + 0.2 * sigmoid(x)) / 0.6 for x in (1.5, -1.0)]
    loss = RobustDPO(beta=0.5, label_smoothing=0.2)
    gives(loss, [value(1.5), value(-1)], [-one for one in gradient], gradient)
    expected = [0.9 * value(1.5) + 0.1 * value(-1.5), 0.5 * value(-1) + 0.5 * value(1)]
    gives(loss, expected, confidence=[0.9, 0.5])
    gives(loss, [value(1.5), value(-1)])


def test_it_takes_the_offset_of_a_margin():
    loss = RobustDPO(beta=0.5, label_smoothing=0.2, margin_scale=0.25)
    gives(loss, [value(1.0), value(-0.75)], margin=[2.0, -1.0])


def test_it_is_dpo_in_expectation_over_flips():
    chosen, rejected = drawn()
    loss = RobustDPO(label_smoothing=0.3)
    expected = 0.7 * loss(chosen, rejected) + 0.3 * loss(rejected, chosen)
    torch.testing.assert_close(expected, DPO()(chosen, rejected))


def test_without_flips_it_is_dpo():
    equal(RobustDPO(label_smoothing=0.0), DPO())


def test_values_and_gradients_are_those_of_trl(trl):
    trl(RobustDPO(beta=0.3, label_smoothing=0.2), "robust", 0.3, label_smoothing=0.2)


def test_bad_arguments_are_named():
    with pytest.raises(UserError, match="RobustDPO: label_smoothing must be in"):
        RobustDPO(label_smoothing=0.5)
