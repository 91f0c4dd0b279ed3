import math

import pytest

from lit_tr.errors import UserError
from lit_tr.losses import EXO
from tests.losses.examples import gives, sigmoid


def value(x, right):
    p = sigmoid(x)
    return p * math.log(p / right) + (1 - p) * math.log((1 - p) / (1 - right))


def slope(x, right):
    return 0.5 * sigmoid(x) * sigmoid(-x) * (x - math.log(right / (1 - right)))


def test_by_hand():
    slopes = [slope(1.5, 0.9), slope(-1, 0.9)]
    gives(EXO(beta=0.5, label_smoothing=0.1), [value(1.5, 0.9), value(-1, 0.9)], slopes, [-one for one in slopes])


def test_the_target_of_uncertain_labels_is_their_probability():
    # right: 0.9 * 0.9 + 0.1 * 0.1 = 0.82; of a tie always 0.5
    slopes = [slope(1.5, 0.82), slope(-1, 0.5)]
    loss, expected = EXO(beta=0.5, label_smoothing=0.1), [value(1.5, 0.82), value(-1, 0.5)]
    gives(loss, expected, slopes, [-one for one in slopes], confidence=[0.9, 0.5])


@pytest.mark.parametrize("label_smoothing", [1e-3, 0.2])
def test_values_and_gradients_are_those_of_trl(trl, label_smoothing):
    trl(EXO(beta=0.2, label_smoothing=label_smoothing), "exo_pair", 0.2, label_smoothing=label_smoothing)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.5])
def test_bad_arguments_are_named(label_smoothing):
    with pytest.raises(UserError, match="EXO: label_smoothing must be in"):
        EXO(label_smoothing=label_smoothing)
