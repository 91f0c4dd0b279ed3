import math

import pytest
import torch
import torch.nn.functional as F

from lit_tr.errors import UserError
from lit_tr.losses import DPO, IPO, KTO, SFT, Labels, Scores

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


LABELS = Labels(torch.tensor([0.9, 0.5], dtype=torch.float64), torch.tensor([2.0, -1.0], dtype=torch.float64))


def double(scored):
    return Scores(scored.policy.double(), scored.reference.double(), scored.tokens)


def close_in_float64(loss, expected, labels=LABELS, kl=ZERO):
    values = loss(double(CHOSEN), double(REJECTED), kl, labels)
    torch.testing.assert_close(values, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_dpo_of_uncertain_labels_by_hand():
    # beta * margin is 1.5 and -1, wrong labels have 0.1 and 0.5
    expected = [-0.9 * log_sigmoid(1.5) - 0.1 * log_sigmoid(-1.5), -0.5 * log_sigmoid(-1) - 0.5 * log_sigmoid(1)]
    close_in_float64(DPO(beta=0.5), expected)


def test_dpo_flips_uncertain_labels_by_its_smoothing():
    # wrong: 0.9 * 0.2 + 0.1 * 0.8 = 0.26; of a tie always 0.5
    expected = [-0.74 * log_sigmoid(1.5) - 0.26 * log_sigmoid(-1.5), -0.5 * log_sigmoid(-1) - 0.5 * log_sigmoid(1)]
    close_in_float64(DPO(beta=0.5, label_smoothing=0.2), expected)


def test_dpo_with_an_offset_by_the_margin():
    # 1.5 - 0.25 * 2 = 1 and -1 + 0.25 * 1 = -0.75
    certain = Labels(torch.ones(2), LABELS.margin)
    close_in_float64(DPO(beta=0.5, margin_scale=0.25), [-log_sigmoid(1.0), -log_sigmoid(-0.75)], certain)


def test_dpo_of_a_label_is_least_where_the_reward_margin_is_its_log_odds_and_its_offset():
    # q-weighted cross-entropy is least at sigmoid(x) = 0.8, and x = reward margin - 0.5 * 3
    margins = torch.linspace(-2, 6, 8001, dtype=torch.float64)
    zero = Scores(torch.zeros(8001), torch.zeros(8001), torch.ones(8001))
    labels = Labels(torch.full((8001,), 0.8), torch.full((8001,), 3.0))
    loss = DPO(beta=1.0, margin_scale=0.5)(Scores(margins, zero.reference, zero.tokens), zero, ZERO, labels)
    assert margins[loss.argmin()].item() == pytest.approx(math.log(0.8 / 0.2) + 1.5, abs=1e-3)


def test_ipo_of_uncertain_labels_by_hand():
    # margins 3 and -2 against 2: 1 and 16; of the other label, -3 and 2 against 2: 25 and 0
    close_in_float64(IPO(beta=0.25), [0.9 * 1 + 0.1 * 25, 0.5 * 16 + 0.5 * 0])


def test_kto_of_uncertain_pairs_by_hand():
    # rewards against the baseline 1, times 0.5: chosen 0.5 and -1, rejected -1 and 0
    value = lambda x: 1 - 1 / (1 + math.exp(-x))  # noqa: E731
    up, down = (lambda x: 3 * value(x)), (lambda x: 2 * value(-x))
    expected = [
        0.9 * up(0.5) + 0.1 * down(0.5),
        0.5 * up(-1) + 0.5 * down(-1),
        0.9 * down(-1) + 0.1 * up(-1),
        0.5 * down(0) + 0.5 * up(0),
    ]
    close_in_float64(KTO(beta=0.5, desirable_weight=3.0, undesirable_weight=2.0), expected, kl=torch.tensor(1.0))


def test_kto_of_uncertain_unpaired_rows_takes_the_desirable_ones_first():
    none = scores([], [], [])
    both = KTO()(CHOSEN, REJECTED, ZERO, Labels(torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.zeros(4)))
    all_desirable, all_undesirable = (KTO()(*sides, ZERO) for sides in ((REJECTED, none), (none, CHOSEN)))
    torch.testing.assert_close(both[[1, 2]], torch.stack([all_undesirable[1], all_desirable[0]]))
    torch.testing.assert_close(both[[0, 3]], KTO()(CHOSEN, REJECTED, ZERO)[[0, 3]])


def test_sft_reads_no_labels():
    assert torch.equal(SFT()(CHOSEN, REJECTED, ZERO, LABELS), SFT()(CHOSEN, REJECTED, ZERO))


def before(loss, chosen, rejected, kl):
    """The losses as they were before labels had a certainty."""
    ratios = chosen.log_ratios - rejected.log_ratios
    if isinstance(loss, DPO):
        logits = loss.beta * ratios
        return -(1 - loss.label_smoothing) * F.logsigmoid(logits) - loss.label_smoothing * F.logsigmoid(-logits)
    if isinstance(loss, IPO):
        return (ratios - 1 / (2 * loss.beta)) ** 2
    desirable = 1 - torch.sigmoid(loss.beta * (chosen.log_ratios - kl))
    undesirable = 1 - torch.sigmoid(loss.beta * (kl - rejected.log_ratios))
    return torch.cat([loss.desirable_weight * desirable, loss.undesirable_weight * undesirable])


@pytest.mark.parametrize(
    "loss", [DPO(), DPO(0.1, 0.1), DPO(0.1, 0.3), IPO(), KTO(), KTO(desirable_weight=1.3, undesirable_weight=0.7)]
)
def test_certain_labels_change_no_bit(loss):
    draw, kl = torch.Generator().manual_seed(0), torch.tensor(0.3)
    policies = [(50 * torch.randn(1000, generator=draw)).requires_grad_() for _ in range(2)]
    sides = [Scores(policy, torch.randn(1000, generator=draw), torch.ones(1000)) for policy in policies]
    labels = Labels(torch.ones(1000), torch.rand(1000, generator=draw))
    values = [loss(*sides, kl, labels), loss(*sides, kl), before(loss, *sides, kl)]
    gradients = [torch.autograd.grad(value.sum(), policies) for value in values]
    for value, gradient in zip(values, gradients, strict=True):
        assert torch.equal(value, values[2])
        assert all(map(torch.equal, gradient, gradients[2]))


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
        (lambda: DPO(margin_scale=-1), "margin_scale must not be negative"),
        (lambda: IPO(beta=-1), "beta must be above 0"),
        (lambda: KTO(beta=0), "beta must be above 0"),
        (lambda: KTO(undesirable_weight=-1), "must not be negative"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
