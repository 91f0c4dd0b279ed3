import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lit_tr.errors import UserError
from lit_tr.losses import DPO, FDPO, IPO, KTO, SFT, Loss, Scores, SimPO


def scores(policy, reference, tokens):
    return Scores(torch.tensor(policy), torch.tensor(tokens), torch.tensor(reference))


# log-ratios: chosen 2 and -1, rejected -1 and 1
CHOSEN = scores([-4.0, -9.0], [-6.0, -8.0], [2, 4])
REJECTED = scores([-7.0, -3.0], [-6.0, -4.0], [5, 1])


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def test_dpo_by_hand():
    # beta * margin is 0.5 * (2 + 1) = 1.5 and 0.5 * (-1 - 1) = -1
    torch.testing.assert_close(DPO(beta=0.5)(CHOSEN, REJECTED), -torch.tensor([log_sigmoid(1.5), log_sigmoid(-1.0)]))


def test_dpo_with_label_smoothing_by_hand():
    expected = [-0.9 * log_sigmoid(x) - 0.1 * log_sigmoid(-x) for x in (1.5, -1.0)]
    loss = DPO(beta=0.5, label_smoothing=0.1)(CHOSEN, REJECTED)
    torch.testing.assert_close(loss, torch.tensor(expected))


def test_dpo_of_equal_policies_is_log_2():
    same = scores([-3.0], [-3.0], [1])
    assert DPO()(same, same).item() == pytest.approx(math.log(2))


def test_ipo_sums_over_tokens_by_default():
    # margins 3 and -2, drawn to 1 / (2 * 0.25) = 2
    torch.testing.assert_close(IPO(beta=0.25)(CHOSEN, REJECTED), torch.tensor([1.0, 16.0]))


def test_ipo_mean_over_tokens():
    # margins 2 / 2 + 1 / 5 = 1.2 and -1 / 4 - 1 / 1 = -1.25
    loss = IPO(beta=0.25, average="mean")(CHOSEN, REJECTED)
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
    assert KTO()(CHOSEN, none).shape == (2,)


def test_sft_is_the_mean_over_tokens():
    torch.testing.assert_close(SFT()(CHOSEN, REJECTED), torch.tensor([2.0, 2.25]))


LABELS = {
    "confidence": torch.tensor([0.9, 0.5], dtype=torch.float64),
    "margin": torch.tensor([2.0, -1.0], dtype=torch.float64),
}


def double(scored, labels=LABELS):
    return Scores(scored.policy.double(), scored.tokens, scored.reference.double(), labels)


def close_in_float64(loss, expected, labels=LABELS, kl=None):
    values = loss(double(CHOSEN, labels), double(REJECTED, labels), kl)
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
    certain = {"margin": LABELS["margin"]}
    close_in_float64(DPO(beta=0.5, margin_scale=0.25), [-log_sigmoid(1.0), -log_sigmoid(-0.75)], certain)


def test_dpo_of_a_label_is_least_where_the_reward_margin_is_its_log_odds_and_its_offset():
    # q-weighted cross-entropy is least at sigmoid(x) = 0.8, and x = reward margin - 0.5 * 3
    margins = torch.linspace(-2, 6, 8001, dtype=torch.float64)
    zero = Scores(torch.zeros(8001), torch.ones(8001), torch.zeros(8001))
    labels = {"confidence": torch.full((8001,), 0.8), "margin": torch.full((8001,), 3.0)}
    loss = DPO(beta=1.0, margin_scale=0.5)(Scores(margins, zero.tokens, zero.reference, labels), zero)
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


def test_kto_reads_the_confidence_of_each_response():
    none = scores([], [], [])
    both = KTO()(
        replace(CHOSEN, labels={"confidence": torch.tensor([1.0, 0.0])}),
        replace(REJECTED, labels={"confidence": torch.tensor([0.0, 1.0])}),
    )
    all_desirable, all_undesirable = KTO()(REJECTED, none), KTO()(none, CHOSEN)
    torch.testing.assert_close(both[[1, 2]], torch.stack([all_undesirable[1], all_desirable[0]]))
    torch.testing.assert_close(both[[0, 3]], KTO()(CHOSEN, REJECTED)[[0, 3]])


def test_sft_reads_no_labels():
    labelled = [replace(side, labels=LABELS) for side in (CHOSEN, REJECTED)]
    assert torch.equal(SFT()(*labelled), SFT()(CHOSEN, REJECTED))


def test_what_the_data_does_not_say_is_the_default():
    labels = {"weight": torch.tensor([0.5, math.nan]), "confidence": torch.tensor([math.nan, 0.25])}
    given = replace(CHOSEN, labels=labels)
    assert given.label("weight", 2.0).tolist() == [0.5, 2.0]
    assert given.label("score", -1.0).tolist() == [-1.0, -1.0]
    assert given.confidence.tolist() == [1.0, 0.25]
    assert given.margin.tolist() == [0.0, 0.0]


def test_simpo_by_hand_without_a_reference():
    # mean log-probs: chosen -2 and -2.25, rejected -1.4 and -3; beta 2 and gamma 0.5: logits -1.7 and 1.0
    sides = [replace(side, reference=None) for side in (CHOSEN, REJECTED)]
    loss = SimPO(beta=2.0, gamma=0.5)
    torch.testing.assert_close(loss(*sides), -torch.tensor([log_sigmoid(-1.7), log_sigmoid(1.0)]))
    torch.testing.assert_close(loss.rewards(sides[0]), torch.tensor([-4.0, -4.5]))
    uncertain = loss(*[replace(side, labels={"confidence": torch.tensor([0.5, 0.9])}) for side in sides])
    expected = [-0.5 * log_sigmoid(-1.7) - 0.5 * log_sigmoid(1.7), -0.9 * log_sigmoid(1.0) - 0.1 * log_sigmoid(-1.0)]
    torch.testing.assert_close(uncertain, torch.tensor(expected))


@pytest.mark.parametrize(
    ("alpha", "derivative"),
    [
        (0.0, lambda u: 1 - 1 / u),  # the forward KL, f = -log(u) + u
        (0.5, lambda u: 2 - 2 / math.sqrt(u)),
        (1.0, math.log),  # the reverse KL, f = u log(u) - u
        (3.0, lambda u: (u**2 - 1) / 2),
    ],
)
def test_fdpo_takes_the_derivative_of_its_divergence(alpha, derivative):
    loss = FDPO(beta=0.5, alpha=alpha)
    rewards = [[0.5 * derivative(math.exp(h)) for h in ratios] for ratios in ((2, -1), (-1, 1))]
    for side, expected in zip((CHOSEN, REJECTED), rewards, strict=True):
        torch.testing.assert_close(loss.rewards(double(side)), torch.tensor(expected, dtype=torch.float64))
    expected = [-log_sigmoid(chosen - rejected) for chosen, rejected in zip(*rewards, strict=True)]
    close_in_float64(loss, expected, labels={})


@pytest.mark.parametrize("alpha", [0.0, 0.5, 3.0])
def test_exponents_of_fdpo_are_bounded(alpha):
    policy = torch.tensor([-1e4, 1e4, 0.0], requires_grad=True)
    side = Scores(policy, torch.ones(3), torch.zeros(3))
    values = FDPO(alpha=alpha)(side, replace(side, policy=-policy))
    (gradient,) = torch.autograd.grad(values.sum(), policy)
    assert values.isfinite().all()
    assert gradient.isfinite().all()


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
    expected = [-log_sigmoid(2 - second.item()), -log_sigmoid(-1 - second.item())]
    torch.testing.assert_close(loss(CHOSEN, none, second), torch.tensor(expected))


def test_the_baseline_of_kto_is_the_mean_log_ratio_of_kl_rows_and_never_negative():
    loss, none = KTO(), scores([], [], [])
    up, down = replace(CHOSEN, policy=torch.tensor([-3.0, -9.0], requires_grad=True)), scores([-3.0], [-1.0], [1])
    sums = loss.sums(none, none, up)  # log-ratios 3 and -1
    assert sums.tolist() == [2.0, 2.0]
    assert not sums.requires_grad
    assert loss.statistics(sums, None).item() == 1.0
    assert loss.statistics(sums + loss.sums(none, none, down), None).item() == 0.0  # 3 - 1 - 2
    assert loss.statistics(loss.sums(none, none, down), None).item() == 0.0
    assert loss.statistics(loss.sums(none, none, none), None).item() == 0.0


@pytest.mark.parametrize("loss", [DPO(), IPO(), SFT(), SimPO(), FDPO()])
def test_other_losses_have_no_statistics(loss):
    assert loss.sums(CHOSEN, REJECTED, CHOSEN) is None


@pytest.mark.parametrize("loss", [DPO(), FDPO(), IPO(average="mean"), KTO(), SFT(), SimPO()])
def test_a_batch_without_examples_has_a_loss_of_no_values_and_a_gradient_of_0(loss):
    policy = torch.tensor([-4.0, -9.0], requires_grad=True)
    nothing = Scores(policy[:0], torch.zeros(0, dtype=torch.long), torch.zeros(0))
    sums = loss.sums(nothing, nothing, nothing)
    values = loss(nothing, nothing, None if sums is None else loss.statistics(sums, None))
    assert values.shape == (0,)
    assert torch.equal(torch.autograd.grad(values.sum(), policy)[0], torch.zeros(2))


def test_sft_of_rejected_responses_alone_has_nothing_to_learn():
    policy = torch.tensor([-4.0, -9.0], requires_grad=True)
    values = SFT()(Scores(policy[:0], torch.zeros(0)), Scores(policy, torch.ones(2)))
    assert torch.equal(torch.autograd.grad(values.sum(), policy)[0], torch.zeros(2))


def test_a_loss_that_reads_a_reference_it_has_not_asked_for_is_told():
    with pytest.raises(UserError, match="leave its needs_reference True"):
        DPO()(replace(CHOSEN, reference=None), REJECTED)


def test_rewards_are_those_of_the_loss():
    # log-ratios 2 and -1 over 2 and 4 tokens, log-probs -4 and -9
    expected = {DPO(0.5): [1, -0.5], IPO(0.5): [1, -0.5], IPO(0.5, "mean"): [0.5, -0.125], KTO(0.5): [1, -0.5]}
    for loss, rewards in {**expected, SFT(): [-2, -2.25]}.items():
        assert loss.rewards(CHOSEN).tolist() == rewards


def before(loss, chosen, rejected, kl):
    """The losses as they were before labels had a confidence."""
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
    sides = [Scores(policy, torch.ones(1000), torch.randn(1000, generator=draw)) for policy in policies]
    labels = {"confidence": torch.ones(1000), "margin": torch.rand(1000, generator=draw)}
    labelled = [replace(side, labels=labels) for side in sides]
    values = [loss(*labelled, kl), loss(*sides, kl), before(loss, *sides, kl)]
    gradients = [torch.autograd.grad(value.sum(), policies) for value in values]
    for value, gradient in zip(values, gradients, strict=True):
        assert torch.equal(value, values[2])
        assert all(map(torch.equal, gradient, gradients[2]))


@pytest.mark.parametrize("loss", [DPO(), DPO(label_smoothing=0.2), FDPO(), IPO(), IPO(average="mean"), KTO(), SimPO()])
def test_gradient_raises_chosen_and_lowers_rejected(loss):
    chosen, rejected = torch.zeros(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    reference, tokens = torch.zeros(3), torch.ones(3)
    loss(Scores(chosen, tokens, reference), Scores(rejected, tokens, reference)).sum().backward()
    assert (chosen.grad < 0).all()
    assert (rejected.grad > 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPO(beta=0), "beta must be above 0"),
        (lambda: DPO(label_smoothing=0.5), "label_smoothing must be in"),
        (lambda: DPO(margin_scale=-1), "margin_scale must not be negative"),
        (lambda: IPO(beta=-1), "beta must be above 0"),
        (lambda: FDPO(beta=0), "FDPO: beta must be above 0"),
        (lambda: SimPO(beta=0), "SimPO: beta must be above 0"),
        (lambda: SimPO(gamma=-1), "gamma must not be negative"),
        (lambda: KTO(beta=0), "beta must be above 0"),
        (lambda: KTO(undesirable_weight=-1), "must not be negative"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
