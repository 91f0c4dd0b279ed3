import math

import pytest

from lit_tr.errors import UserError
from lit_tr.losses import IREPO
from tests.losses.examples import CHOSEN, gives


def test_by_hand():
    # reward margins 1.5 and -1 against the log-odds log(9) and 0
    gradient = [2 * 0.5 * (1.5 - math.log(9)), 2 * 0.5 * -1]
    expected = [(1.5 - math.log(9)) ** 2, 1.0]
    gives(IREPO(beta=0.5), expected, gradient, [-one for one in gradient], confidence=[0.9, 0.5])
    assert IREPO(beta=0.5).rewards(CHOSEN).tolist() == [1, -0.5]


def test_certain_labels_have_a_finite_target():
    gives(IREPO(beta=0.5, floor=0.2), [(1.5 - math.log(4)) ** 2, (-1 - math.log(4)) ** 2])
    gives(IREPO(beta=0.5, floor=0.2), [(1.5 + math.log(4)) ** 2, (-1 - math.log(4)) ** 2], confidence=[0.0, 1.0])


@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_bad_arguments_are_named(floor):
    with pytest.raises(UserError, match="IREPO: floor must be in"):
        IREPO(floor=floor)
