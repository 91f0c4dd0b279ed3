from dataclasses import replace

import pytest
import torch

from lit_tr.errors import UserError
from lit_tr.losses import KTO, Scores
from tests.losses.examples import CHOSEN, REJECTED, labelled, scores, sigmoid

WEIGHED = KTO(beta=0.5, desirable_weight=3.0, undesirable_weight=2.0)


def close(values, expected):
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_by_hand_it_weighs_and_orders_desirable_first():
    expected = [
        3 * (1 - sigmoid(0.5 * (2 - 1))),
        3 * (1 - sigmoid(0.5 * (-1 - 1))),
        2 * (1 - sigmoid(0.5 * (1 + 1))),
        2 * (1 - sigmoid(0.5 * (1 - 1))),
    ]
    close(WEIGHED(CHOSEN, REJECTED, torch.tensor(1.0)), expected)
    assert KTO(0.5).rewards(CHOSEN).tolist() == [1, -0.5]


def test_it_takes_more_desirable_than_undesirable_examples():
    none = scores([], [], [])
    assert KTO()(CHOSEN, none).shape == (2,)


def test_uncertain_pairs_by_hand():
    # rewards against the baseline 1, times 0.5: chosen 0.5 and -1, rejected -1 and 0
    up, down = (lambda x: 3 * (1 - sigmoid(x))), (lambda x: 2 * (1 - sigmoid(-x)))
    expected = [
        0.9 * up(0.5) + 0.1 * down(0.5),
        0.5 * up(-1) + 0.5 * down(-1),
        0.9 * down(-1) + 0.1 * up(-1),
        0.5 * down(0) + 0.5 * up(0),
    ]
    sides = [labelled(side, confidence=[0.9, 0.5]) for side in (CHOSEN, REJECTED)]
    close(WEIGHED(*sides, torch.tensor(1.0)), expected)


def test_it_reads_the_confidence_of_each_response():
    none = scores([], [], [])
    both = KTO()(labelled(CHOSEN, confidence=[1.0, 0.0]), labelled(REJECTED, confidence=[0.0, 1.0]))
    all_desirable, all_undesirable = KTO()(REJECTED, none), KTO()(none, CHOSEN)
    torch.testing.assert_close(both[[1, 2]], torch.stack([all_undesirable[1], all_desirable[0]]))
    torch.testing.assert_close(both[[0, 3]], KTO()(CHOSEN, REJECTED)[[0, 3]])


def test_certain_labels_change_no_bit():
    draw, kl = torch.Generator().manual_seed(0), torch.tensor(0.3)
    sides = [Scores(50 * torch.randn(1000, generator=draw), torch.ones(1000), torch.zeros(1000)) for _ in range(2)]
    loss = KTO(desirable_weight=1.3, undesirable_weight=0.7)
    before = [1.3 * (1 - torch.sigmoid(loss.beta * (sides[0].log_ratios - kl)))]
    before.append(0.7 * (1 - torch.sigmoid(loss.beta * (kl - sides[1].log_ratios))))
    assert torch.equal(loss(*sides, kl), torch.cat(before))


def test_the_baseline_is_the_mean_log_ratio_of_kl_rows_and_never_negative():
    loss, none = KTO(), scores([], [], [])
    up = replace(CHOSEN, policy=torch.tensor([-3.0, -9.0], requires_grad=True))
    down = scores([-3.0], [-1.0], [1])
    sums = loss.sums(none, none, up)  # log-ratios 3 and -1
    assert sums.tolist() == [2.0, 2.0]
    assert not sums.requires_grad
    assert loss.statistics(sums, None).item() == 1.0
    assert loss.statistics(sums + loss.sums(none, none, down), None).item() == 0.0  # 3 - 1 - 2
    assert loss.statistics(loss.sums(none, none, down), None).item() == 0.0
    assert loss.statistics(loss.sums(none, none, none), None).item() == 0.0


def test_bad_arguments_are_named():
    with pytest.raises(UserError, match="KTO: weights must not be negative"):
        KTO(undesirable_weight=-1)
