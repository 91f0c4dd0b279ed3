import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lit_tr.errors import UserError
from lit_tr.losses import DPO, Loss
from tests.losses.examples import CHOSEN, REJECTED, log_sigmoid, scores


def test_what_the_data_does_not_say_is_the_default():
    labels = {"weight": torch.tensor([0.5, math.nan]), "confidence": torch.tensor([math.nan, 0.25])}
    given = replace(CHOSEN, labels=labels)
    assert given.label("weight", 2.0).tolist() == [0.5, 2.0]
    assert given.label("score", -1.0).tolist() == [-1.0, -1.0]
    assert given.confidence.tolist() == [1.0, 0.25]
    assert given.margin.tolist() == [0.0, 0.0]


def test_a_loss_that_reads_a_reference_it_has_not_asked_for_is_told():
    with pytest.raises(UserError, match="leave its needs_reference True"):
        DPO()(replace(CHOSEN, reference=None), REJECTED)


class RewardMean(Loss):
    """-log(sigmoid(reward - d)) of the chosen responses, d a running mean of rewards, as in BCO (arXiv 2404.04656)."""

    beta = 1.0
    paired = False

    def __call__(self, chosen, rejected, statistics=None):
        return -F.logsigmoid(self.rewards(chosen) - statistics)

    def sums(self, chosen, rejected, kl_rows):
        rewards = torch.cat([self.rewards(chosen), self.rewards(rejected)]).detach()
        return torch.stack([rewards.sum(), rewards.new_tensor(len(rewards))])

    def statistics(self, sums, previous):
        mean = sums[0] / sums[1]
        return mean if previous is None else 0.75 * previous + 0.25 * mean


def test_statistics_run_over_ranks_and_steps():
    loss, none = RewardMean(), scores([], [], [])
    ranks = [loss.sums(CHOSEN, REJECTED, none), loss.sums(CHOSEN, none, none)]  # rewards 2 -1 -1 1 and 2 -1
    first = loss.statistics(sum(ranks), None)
    second = loss.statistics(loss.sums(CHOSEN, none, none), first)
    assert first.item() == pytest.approx(2 / 6)
    assert second.item() == pytest.approx(0.75 * 2 / 6 + 0.25 * 0.5)
    expected = [log_sigmoid(2 - second.item()), log_sigmoid(-1 - second.item())]
    torch.testing.assert_close(loss(CHOSEN, none, second), -torch.tensor(expected, dtype=torch.float64))
