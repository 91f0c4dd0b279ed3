import math

import pytest
import torch

from lit_tr.errors import UserError
from lit_tr.losses import DPO, IPO, KTO, SFT, Scores

ZERO = torch.tensor(0.0)


def scores(policy, reference, tokens):
    return Scores(torch.tensor(policy), torch.tensor(reference), torch.tensor(tokens))


# log-ratios: chosen 2 and -1, rejected -1 and 1
CHOSEN = scores([-4.0, -9.0], [-6.0, -8.0], [2, 4])
REJECTED = scores([-7.0, -3.0], [-6.0, -4.0], [5, 1])


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def test_dpo_by_hand():
    # beta * margin is 0.5 * (2 + 1) = 1.5 and 0.5 * (-1 - 1) = -1
    torch.testing.assert_close(
        DPO(beta=0.5)(CHOSEN, REJECTED, ZERO), -torch.tensor([log_sigmoid(1.5), log_sigmoid(-1.0)])
    )


def test_dpo_with_label_smoothing_by_hand():
    expected = [-0.9 * log_sigmoid(x) - 0.1 * log_sigmoid(-x) for x in (1.5, -1.0)]
    loss = DPO(beta=0.5, label_smoothing=0.1)(CHOSEN, REJECTED, ZERO)
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_dpo_of_equal_policies_is_log_2():
    same = scores([-3.0], [-3.0], [1])
    assert DPO()(same, same, ZERO).item() == pytest.approx(math.log(2))


def test_ipo_sums_over_tokens_by_default():
    # margins 3 and -2, drawn to 1 / (2 * 0.25) = 2
    torch.testing.assert_close(IPO(beta=0.25)(CHOSEN, REJECTED, ZERO), torch.tensor([1.0, 16.0]))


def test_ipo_mean_over_tokens():
    # margins 2 / 2 + 1 / 5 = 1.2 and -1 / 4 - 1 / 1 = -1.25
    loss = IPO(beta=0.25, average="mean")(CHOSEN, REJECTED, ZERO)
    torch.testing.assert_close(loss, torch.tensor([0.8**2, 3.25**2]))


def test_kto_by_hand_weighs_and_orders_desirable_first():
    loss = KTO(beta=0.5, desirable_weight=3.0, undesirable_weight=2.0)(CHOSEN, REJECTED, torch.tensor(1.0))
    sigmoid = lambda x: 1 / (1 + math.exp(-x))  # noqa: E731
    expected = [
        3 * (1 - sigmoid(0.5 * (2 - 1))),
        3 * (1 - sigmoid(0.5 * (-1 - 1))),
        2 * (1 - sigmoid(0.5 * (1 + 1))),
        2 * (1 - sigmoid(0.5 * (1 - 1))),
    ]
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_kto_takes_more_desirable_than_undesirable_examples():
    none = scores([], [], [])
    assert KTO()(CHOSEN, none, ZERO).shape == (2,)


def test_sft_is_the_mean_over_tokens():
    torch.testing.assert_close(SFT()(CHOSEN, REJECTED, ZERO), torch.tensor([2.0, 2.25]))


@pytest.mark.parametrize("loss", [DPO(), DPO(label_smoothing=0.2), IPO(), IPO(average="mean"), KTO()])
def test_gradient_raises_chosen_and_lowers_rejected(loss):
    chosen, rejected = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    reference, tokens = torch.zeros(3), torch.ones(3)
    loss(Scores(chosen, reference, tokens), Scores(rejected, reference, tokens), ZERO).sum().backward()
    assert (chosen.grad < 0).all()
    assert (rejected.grad > 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPO(beta=0), "beta must be above 0"),
        (lambda: DPO(label_smoothing=0.5), "label_smoothing must be in"),
        (lambda: IPO(beta=-1), "beta must be above 0"),
        (lambda: KTO(beta=0), "beta must be above 0"),
        (lambda: KTO(undesirable_weight=-1), "must not be negative"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
