import pytest

from lit_tr.errors import UserError
from lit_tr.losses import DPO, SELM
from tests.losses.examples import CHOSEN, REJECTED, computed, equal, gives, labelled, log_sigmoid, sigmoid


def test_by_hand():
    # log-ratios: chosen 2 and -1, rejected -1 and 1, of which the means are 0.5 and 0; times 0.2 * 0.5
    values = [-log_sigmoid(1.5) + 0.1 * 0.5, -log_sigmoid(-1.0)]
    slopes = [0.5 * sigmoid(-1.5), 0.5 * sigmoid(1.0)]
    gives(SELM(beta=0.5, alpha=0.2), values, [0.05 - one for one in slopes], [0.05 + one for one in slopes])


def test_labels_say_which_responses_are_the_references_own():
    loss, plain = SELM(beta=0.5, alpha=0.2), computed(DPO(beta=0.5))
    first = labelled(CHOSEN, sampled=[1.0, 0.0]), labelled(REJECTED, sampled=[0.0, 0.0])
    values, of_chosen, of_rejected = computed(loss, *first)
    assert (values - plain[0]).tolist() == pytest.approx([0.1 * 2, 0])  # the second pair has none
    assert (of_chosen - plain[1]).tolist() == pytest.approx([0.1, 0])
    assert (of_rejected - plain[2]).tolist() == pytest.approx([0, 0])


def test_without_optimism_it_is_dpo():
    equal(SELM(beta=0.3, alpha=0.0), DPO(beta=0.3))


def test_alpha_is_not_negative():
    with pytest.raises(UserError, match="alpha must not be negative"):
        SELM(alpha=-1.0)
