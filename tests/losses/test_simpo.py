from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from trl.experimental.cpo import CPOTrainer

from lit_tr.errors import UserError
from lit_tr.losses import SimPO
from tests.losses.examples import CHOSEN, computed, drawn, gives, log_sigmoid, sigmoid


def test_by_hand():
    # mean log-probs: chosen -2 and -2.25, rejected -1.4 and -3; beta 2 and gamma 0.5: logits -1.7 and 1.0
    slopes = [2 * sigmoid(1.7), 2 * sigmoid(-1.0)]
    chosen, rejected = [-slopes[0] / 2, -slopes[1] / 4], [slopes[0] / 5, slopes[1]]
    gives(SimPO(beta=2.0, gamma=0.5), [-log_sigmoid(-1.7), -log_sigmoid(1.0)], chosen, rejected)
    expected = [-0.5 * log_sigmoid(-1.7) - 0.5 * log_sigmoid(1.7), -0.9 * log_sigmoid(1.0) - 0.1 * log_sigmoid(-1.0)]
    gives(SimPO(beta=2.0, gamma=0.5), expected, confidence=[0.5, 0.9])


def theirs(chosen, rejected, statistics=None):
    options = {"alpha": 0.0, "label_smoothing": 0.0, "loss_type": "simpo", "simpo_gamma": 0.7}
    trainer = SimpleNamespace(beta=2.0, accelerator=SimpleNamespace(device="cpu"), **options)
    return CPOTrainer.cpo_loss(trainer, *(side.policy / side.tokens for side in (chosen, rejected)))[0]


def test_values_and_gradients_are_those_of_trl():
    for one, expected in zip(computed(SimPO(beta=2.0, gamma=0.7), *drawn()), computed(theirs, *drawn()), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-5)


def test_rewards_need_no_reference():
    rewards = SimPO(beta=2.0).rewards(replace(CHOSEN, reference=None))
    torch.testing.assert_close(rewards, torch.tensor([-4.0, -4.5], dtype=torch.float64))


def test_bad_arguments_are_named():
    with pytest.raises(UserError, match="SimPO: gamma must not be negative"):
        SimPO(gamma=-1)
