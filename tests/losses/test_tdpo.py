import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lit_tr.errors import UserError
from lit_tr.losses import DPO, TDPO1, TDPO2, Scores


def drawn(seed, pairs=5):
    torch.manual_seed(seed)
    policy, reference, kl = -9 * torch.rand(3, pairs, dtype=torch.float64)
    return Scores(policy.requires_grad_(), torch.ones(pairs), reference, kl=(-kl).requires_grad_())


def of_the_authors(chosen, rejected, beta, alpha=0.5, second=True):
    """The formula of trainers.py in Vance0124/Token-level-Direct-Preference-Optimization, in our names."""
    margin = (chosen.policy - chosen.reference) - (rejected.policy - rejected.reference)
    margin = margin + (alpha * (chosen.kl.detach() - rejected.kl) if second else chosen.kl - rejected.kl)
    return -F.logsigmoid(beta * margin)


@pytest.mark.parametrize(
    ("loss", "options"),
    [(TDPO1(beta=0.3), {"second": False}), (TDPO2(beta=0.3), {}), (TDPO2(beta=0.3, alpha=2.0), {"alpha": 2.0})],
)
def test_values_and_gradients_are_those_of_the_authors(loss, options):
    chosen, rejected = drawn(1), drawn(2)
    leaves = chosen.policy, rejected.policy, chosen.kl, rejected.kl
    ours, theirs = loss(chosen, rejected), of_the_authors(chosen, rejected, 0.3, **options)
    torch.testing.assert_close(ours, theirs)
    both = [torch.autograd.grad(one.sum(), leaves, allow_unused=True, materialize_grads=True) for one in (ours, theirs)]
    torch.testing.assert_close(*both)
    assert bool(both[0][2].any()) is (not isinstance(loss, TDPO2))  # whether the preferred response's KL is trained


def test_by_hand():
    tokens, reference = torch.tensor([5.0]), torch.tensor([-10.0])
    chosen = Scores(torch.tensor([-9.0]), tokens, reference, kl=torch.tensor([0.5]))
    rejected = Scores(torch.tensor([-12.0]), tokens, reference, kl=torch.tensor([2.5]))
    # log-ratios 1 and -2; KL 2.5 - 0.5 = 2
    for loss, x in ((TDPO1(beta=0.5), 0.5 * (3 - 2)), (TDPO2(beta=0.5, alpha=0.25), 0.5 * (3 - 0.25 * 2))):
        assert loss(chosen, rejected).item() == pytest.approx(math.log(1 + math.exp(-x)))
        assert loss.rewards(chosen).item() == 0.5
    unsure = replace(chosen, labels={"confidence": torch.tensor([0.8])})
    expected = 0.8 * math.log(1 + math.exp(-0.5)) + 0.2 * math.log(1 + math.exp(0.5))
    assert TDPO1(beta=0.5)(unsure, rejected).item() == pytest.approx(expected)


def test_an_uncertain_label_stops_the_gradient_of_the_better_response_of_each_order():
    chosen, rejected = drawn(1), drawn(2)
    wrong = replace(chosen, labels={"confidence": torch.zeros(5)})
    gradients = torch.autograd.grad(TDPO2()(wrong, rejected).sum(), (chosen.kl, rejected.kl))
    swapped = torch.autograd.grad(TDPO2()(rejected, chosen).sum(), (chosen.kl, rejected.kl), materialize_grads=True)
    torch.testing.assert_close(gradients, swapped)
    assert gradients[0].all()
    assert not gradients[1].any()


def test_without_divergences_it_is_dpo():
    chosen, rejected = drawn(1), drawn(2)
    torch.testing.assert_close(TDPO2(beta=0.3, alpha=0.0)(chosen, rejected), DPO(beta=0.3)(chosen, rejected))
    none = [replace(one, kl=torch.zeros(5)) for one in (chosen, rejected)]
    torch.testing.assert_close(TDPO1(beta=0.3)(*none), DPO(beta=0.3)(*none))


def test_what_it_asks_for():
    assert TDPO1().needs_kl is TDPO2().needs_kl is True
    assert DPO().needs_kl is False


def test_bad_arguments_and_missing_divergences_are_named():
    with pytest.raises(UserError, match="TDPO2: beta must be above 0, not 0"):
        TDPO2(beta=0)
    with pytest.raises(UserError, match="TDPO2: alpha must not be negative, not -1"):
        TDPO2(alpha=-1)
    with pytest.raises(UserError, match="reads the kl of its scores, and there is none"):
        TDPO1()(replace(drawn(1), kl=None), drawn(2))
