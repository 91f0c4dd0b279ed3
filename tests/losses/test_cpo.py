from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from trl.experimental.cpo import CPOTrainer

from lit_tr.errors import UserError
from lit_tr.losses import CPO
from tests.losses.examples import CHOSEN, computed, drawn, gives, log_sigmoid, sigmoid


def test_by_hand():
    # log-probs -4 and -9 against -7 and -3, times 0.5: 1.5 and -3; mean log-probs of chosen -2 and -2.25
    slopes = [0.5 * sigmoid(-1.5), 0.5 * sigmoid(3)]
    values = [-log_sigmoid(1.5) + 0.3 * 2, -log_sigmoid(-3) + 0.3 * 2.25]
    gives(CPO(beta=0.5, nll_weight=0.3), values, [-slopes[0] - 0.3 / 2, -slopes[1] - 0.3 / 4], slopes)
    # the other label has the NLL of rejected responses, 1.4 and 3
    other = [-log_sigmoid(-1.5) + 0.3 * 1.4, -log_sigmoid(3) + 0.3 * 3]
    expected = [0.9 * values[0] + 0.1 * other[0], 0.5 * values[1] + 0.5 * other[1]]
    gives(CPO(beta=0.5, nll_weight=0.3), expected, confidence=[0.9, 0.5])


def test_rewards_need_no_reference():
    assert CPO(beta=0.5).rewards(replace(CHOSEN, reference=None)).tolist() == [-2, -4.5]


def theirs(chosen, rejected, statistics=None):
    """TRL's preference term, and the NLL of each pair."""
    options = {"alpha": 0.0, "label_smoothing": 0.0, "loss_type": "sigmoid"}
    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"), **options)
    return CPOTrainer.cpo_loss(trainer, chosen.policy, rejected.policy)[0] - 0.7 * chosen.policy / chosen.tokens


def test_values_and_gradients_are_those_of_trl():
    ours = computed(CPO(beta=0.3, nll_weight=0.7), *drawn())
    for one, expected in zip(ours, computed(theirs, *drawn()), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-5)


def test_bad_arguments_are_named():
    with pytest.raises(UserError, match="CPO: nll_weight must not be negative"):
        CPO(nll_weight=-1)
