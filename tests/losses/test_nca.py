from lit_tr.losses import NCA
from tests.losses.examples import gives, log_sigmoid, sigmoid


def value(chosen, rejected):
    return -log_sigmoid(chosen) - 0.5 * log_sigmoid(-chosen) - 0.5 * log_sigmoid(-rejected)


def test_by_hand():
    # rewards of chosen 1 and -0.5, of rejected -0.5 and 0.5
    up = [0.5 * (0.5 * sigmoid(r) - sigmoid(-r)) for r in (1, -0.5)]
    gives(NCA(beta=0.5), [value(1, -0.5), value(-0.5, 0.5)], up, [0.25 * sigmoid(r) for r in (-0.5, 0.5)])
    expected = [0.9 * value(1, -0.5) + 0.1 * value(-0.5, 1), 0.5 * value(-0.5, 0.5) + 0.5 * value(0.5, -0.5)]
    gives(NCA(beta=0.5), expected, confidence=[0.9, 0.5])


def test_values_and_gradients_are_those_of_trl(trl):
    trl(NCA(beta=0.2), "nca_pair", 0.2)
