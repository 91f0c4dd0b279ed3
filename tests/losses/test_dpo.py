import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lit_tr.errors import UserError
from lit_tr.losses import DPO, Scores
from tests.losses.examples import CHOSEN, REJECTED, UNCERTAIN, drawn, equal, gives, labelled, log_sigmoid, sigmoid


def test_by_hand():
    # beta * difference is 0.5 * (2 + 1) = 1.5 and 0.5 * (-1 - 1) = -1
    gradient = [0.5 * sigmoid(-1.5), 0.5 * sigmoid(1)]
    gives(DPO(beta=0.5), [-log_sigmoid(1.5), -log_sigmoid(-1.0)], [-one for one in gradient], gradient)
    assert DPO(beta=0.5).rewards(CHOSEN).tolist() == [1, -0.5]


def test_label_smoothing_by_hand():
    expected = [-0.9 * log_sigmoid(x) - 0.1 * log_sigmoid(-x) for x in (1.5, -1.0)]
    gradient = [0.5 * (0.9 * sigmoid(-x) - 0.1 * sigmoid(x)) for x in (1.5, -1.0)]
    gives(DPO(beta=0.5, label_smoothing=0.1), expected, [-one for one in gradient], gradient)


def test_equal_policies_have_log_2():
    assert DPO()(CHOSEN, CHOSEN).tolist() == pytest.approx([math.log(2)] * 2)


def test_uncertain_labels_by_hand():
    # beta * difference is 1.5 and -1, wrong labels have 0.1 and 0.5
    expected = [-0.9 * log_sigmoid(1.5) - 0.1 * log_sigmoid(-1.5), -0.5 * log_sigmoid(-1) - 0.5 * log_sigmoid(1)]
    gives(DPO(beta=0.5), expected, **UNCERTAIN)


def test_smoothing_flips_uncertain_labels():
    # wrong: 0.9 * 0.2 + 0.1 * 0.8 = 0.26; of a tie always 0.5
    expected = [-0.74 * log_sigmoid(1.5) - 0.26 * log_sigmoid(-1.5), -0.5 * log_sigmoid(-1) - 0.5 * log_sigmoid(1)]
    gives(DPO(beta=0.5, label_smoothing=0.2), expected, **UNCERTAIN)


def test_a_linear_offset():
    # 1.5 - 0.25 * 2 = 1 and -1 + 0.25 * 1 = -0.75
    gives(DPO(beta=0.5, margin_scale=0.25), [-log_sigmoid(1.0), -log_sigmoid(-0.75)], margin=[2.0, -1.0])


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan])
def test_a_logarithmic_offset_of_odpo(margin):
    # 1.5 - 0.25 * log(2), and none for a margin that is not above 0
    x = 1.5 - 0.25 * math.log(2)
    gradient = [0.5 * sigmoid(-x), 0.5 * sigmoid(1)]
    loss = DPO(beta=0.5, margin_scale=0.25, offset="log")
    gives(loss, [-log_sigmoid(x), -log_sigmoid(-1)], [-one for one in gradient], gradient, margin=[2.0, margin])


@pytest.mark.parametrize("offset", ["linear", "log"])
def test_odpo_without_margins_is_dpo(offset):
    equal(DPO(margin_scale=1.0, offset=offset), DPO())


def test_odpo_is_that_of_its_authors():
    """As in `preference_loss` of their trainers.py: -logsigmoid(beta * logits - alpha * log(r_w - r_l))."""
    chosen, rejected = drawn()
    margin = torch.rand(16, generator=torch.Generator().manual_seed(1)) * 3
    logits = (chosen.policy - rejected.policy) - (chosen.reference - rejected.reference)
    expected = -F.logsigmoid(0.7 * logits - 0.5 * torch.log(margin))
    values = DPO(beta=0.7, margin_scale=0.5, offset="log")(replace(chosen, labels={"margin": margin}), rejected)
    torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)


def test_a_label_is_least_where_the_reward_margin_is_its_log_odds_and_its_offset():
    # q-weighted cross-entropy is least at sigmoid(x) = 0.8, and x = reward margin - 0.5 * 3
    margins = torch.linspace(-2, 6, 8001, dtype=torch.float64)
    zero = Scores(torch.zeros(8001), torch.ones(8001), torch.zeros(8001))
    labels = {"confidence": torch.full((8001,), 0.8), "margin": torch.full((8001,), 3.0)}
    loss = DPO(beta=1.0, margin_scale=0.5)(Scores(margins, zero.tokens, zero.reference, labels), zero)
    assert margins[loss.argmin()].item() == pytest.approx(math.log(0.8 / 0.2) + 1.5, abs=1e-3)


def test_a_mean_over_tokens():
    # 2 / 2 + 1 / 5 = 1.2 and -1 / 4 - 1 / 1 = -1.25, times 0.5
    slopes = [0.5 * sigmoid(-0.6), 0.5 * sigmoid(0.625)]
    chosen, rejected = [-slopes[0] / 2, -slopes[1] / 4], [slopes[0] / 5, slopes[1]]
    gives(DPO(beta=0.5, average="mean"), [-log_sigmoid(0.6), -log_sigmoid(-0.625)], chosen, rejected)
    assert DPO(beta=0.5, average="mean").rewards(CHOSEN).tolist() == [0.5, -0.125]


@pytest.mark.parametrize(("average", "kind"), [("sum", "sigmoid"), ("mean", "sigmoid_norm")])
def test_values_and_gradients_are_those_of_trl(trl, average, kind):
    trl(DPO(beta=0.1, average=average), kind, 0.1)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.3])
def test_certain_labels_change_no_bit(label_smoothing):
    draw = torch.Generator().manual_seed(0)
    policies = [(50 * torch.randn(1000, generator=draw)).requires_grad_() for _ in range(2)]
    sides = [Scores(policy, torch.ones(1000), torch.randn(1000, generator=draw)) for policy in policies]
    labels = {"confidence": torch.ones(1000), "margin": torch.rand(1000, generator=draw)}
    with_labels = [replace(side, labels=labels) for side in sides]
    logits = 0.1 * (sides[0].log_ratios - sides[1].log_ratios)
    before = -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)
    loss = DPO(0.1, label_smoothing)
    for values in (loss(*with_labels), loss(*sides)):
        assert torch.equal(values, before)
        gradients = [torch.autograd.grad(one.sum(), policies, retain_graph=True) for one in (values, before)]
        assert all(map(torch.equal, *gradients))


def test_an_uncertain_label_of_0_is_the_other_order():
    values = DPO()(labelled(CHOSEN, confidence=[0.0, 0.0]), REJECTED)
    assert values.tolist() == pytest.approx(DPO()(REJECTED, CHOSEN).tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 0.5}, "DPO: label_smoothing must be in"),
        ({"label_smoothing": -0.1}, "DPO: label_smoothing must be in"),
        ({"margin_scale": -1}, "DPO: margin_scale must not be negative"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(UserError, match=message):
        DPO(**options)
