import pytest

from lit_tr.errors import UserError
from lit_tr.losses import Hinge
from tests.losses.examples import gives


def test_by_hand():
    # reward margins 1.5, which is enough, and -1
    gives(Hinge(beta=0.5), [0, 2], [0, -0.5], [0, 0.5])
    gives(Hinge(beta=0.5, delta=2.0), [0.5, 3])
    # of the other label 2.5 and 0
    gives(Hinge(beta=0.5), [0.1 * 2.5, 0.5 * 2], [0.1 * 0.5, -0.5 * 0.5], confidence=[0.9, 0.5])


def test_values_and_gradients_are_those_of_trl(trl):
    trl(Hinge(beta=0.2), "hinge", 0.2)


def test_bad_arguments_are_named():
    with pytest.raises(UserError, match="Hinge: delta must be above 0"):
        Hinge(delta=0)
