import pytest

from lit_tr.losses import APODown, APOZero
from tests.losses.examples import gives, sigmoid


def slope(r):
    return 0.5 * sigmoid(r) * sigmoid(-r)


def zero(chosen, rejected):
    return 1 - sigmoid(chosen) + sigmoid(rejected)


def down(chosen, rejected):
    return sigmoid(chosen) + 1 - sigmoid(chosen - rejected)


def test_by_hand():
    # rewards of chosen 1 and -0.5, of rejected -0.5 and 0.5
    gradients = [-slope(1), -slope(-0.5)], [slope(-0.5), slope(0.5)]
    gives(APOZero(beta=0.5), [zero(1, -0.5), zero(-0.5, 0.5)], *gradients)
    gradients = [slope(1) - slope(1.5), slope(-0.5) - slope(-1)], [slope(1.5), slope(-1)]
    gives(APODown(beta=0.5), [down(1, -0.5), down(-0.5, 0.5)], *gradients)


@pytest.mark.parametrize(("loss", "value"), [(APOZero(beta=0.5), zero), (APODown(beta=0.5), down)])
def test_uncertain_labels_by_hand(loss, value):
    expected = [0.9 * value(1, -0.5) + 0.1 * value(-0.5, 1), 0.5 * value(-0.5, 0.5) + 0.5 * value(0.5, -0.5)]
    gives(loss, expected, confidence=[0.9, 0.5])


@pytest.mark.parametrize(("loss", "kind"), [(APOZero(beta=0.2), "apo_zero"), (APODown(beta=0.2), "apo_down")])
def test_values_and_gradients_are_those_of_trl(trl, loss, kind):
    trl(loss, kind, 0.2)
