from lit_tr.losses import SPPO
from tests.losses.examples import gives


def test_by_hand():
    # log-ratios 2 and -1 are drawn to 1, -1 and 1 to -1
    gives(SPPO(beta=0.5), [1, 4 + 4], [2, -4], [0, 4])


def test_a_confidence_is_the_probability_of_a_win():
    """The paper's (log-ratio - (p - 1/2) / beta)^2 of both responses has the same gradient."""
    # targets 0.8 and 0, and -0.8 and 0
    chosen, rejected = [2 * (2 - 0.8), 2 * (-1 - 0)], [2 * (-1 + 0.8), 2 * (1 - 0)]
    expected = [0.9 * (1 + 0) + 0.1 * (9 + 4), 0.5 * (4 + 4) + 0.5 * 0]
    gives(SPPO(beta=0.5), expected, chosen, rejected, confidence=[0.9, 0.5])


def test_values_and_gradients_are_those_of_trl(trl):
    trl(SPPO(beta=0.2), "sppo_hard", 0.2)
