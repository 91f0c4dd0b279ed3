import math

import pytest

from lit_tr.errors import UserError
from lit_tr.losses import DiscoPOP
from tests.losses.examples import computed, gives, log_sigmoid, scores, sigmoid


def value(x):
    m = sigmoid(x / 0.5)
    return -(1 - m) * log_sigmoid(x) + m * math.exp(-x)


def slope(x):
    m = sigmoid(x / 0.5)
    return m * (1 - m) / 0.5 * (math.exp(-x) + log_sigmoid(x)) - (1 - m) * sigmoid(-x) - m * math.exp(-x)


def test_by_hand():
    gradient = [0.5 * slope(1.5), 0.5 * slope(-1)]
    gives(DiscoPOP(beta=0.5, tau=0.5), [value(1.5), value(-1)], gradient, [-one for one in gradient])
    expected = [0.9 * value(1.5) + 0.1 * value(-1.5), 0.5 * value(-1) + 0.5 * value(1)]
    gives(DiscoPOP(beta=0.5, tau=0.5), expected, confidence=[0.9, 0.5])


def test_it_rises_where_training_begins():
    for x, sign in ((-0.13, -1), (-0.11, 1), (0.0, 1), (0.06, 1), (0.08, -1)):
        pair = scores([x], [0.0], [1]), scores([0.0], [0.0], [1])
        _, gradient, _ = computed(DiscoPOP(beta=1.0, tau=0.05), *pair)
        assert gradient.sign() == sign


def test_values_and_gradients_are_those_of_trl(trl):
    trl(DiscoPOP(beta=0.1, tau=0.5), "discopop", 0.1)


def test_bad_arguments_are_named():
    with pytest.raises(UserError, match="DiscoPOP: tau must be above 0"):
        DiscoPOP(tau=0)
