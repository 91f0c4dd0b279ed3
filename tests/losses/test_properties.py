"""What holds for all losses."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_tr import losses
from lit_tr.losses import (
    BCO,
    DPO,
    IPO,
    KTO,
    SFT,
    TDPO2,
    AlphaDivergence,
    DiscoPOP,
    ForwardKL,
    Hinge,
    JensenShannon,
    Loss,
    RobustDPO,
    Scores,
    Weighted,
)

KINDS = [one for one in vars(losses).values() if inspect.isclass(one) and issubclass(one, Loss)]
LOSSES = [kind() for kind in KINDS if not inspect.isabstract(kind) and kind is not Weighted]
LOSSES += [
    DPO(label_smoothing=0.2, margin_scale=0.5, average="mean"),
    DPO(margin_scale=0.5, offset="log", divergence=ForwardKL()),
    DPO(divergence=AlphaDivergence(3.0)),
    Hinge(divergence=JensenShannon()),
    IPO(average="mean"),
    RobustDPO(divergence=AlphaDivergence(0.5)),
    Weighted([TDPO2(), SFT()], [1.0, 0.5]),
    Weighted([BCO(), KTO()]),
]
each = pytest.mark.parametrize("loss", LOSSES, ids=str)

NATS = st.floats(-30, -0.1)
EXTREME = st.sampled_from([-2e4, -1e4, -100.0, -1.0, 0.0])
LABELS = st.tuples(st.floats(0, 1), st.floats(-3, 3))


def pairs_of(nats):
    """Return a strategy for pairs: log-probs under policy and reference, numbers of tokens, confidence, margin."""
    response = st.tuples(nats, nats, st.integers(1, 4))
    return st.lists(st.tuples(response, response, LABELS), min_size=1, max_size=6)


def sides_of(pairs, dtype=torch.float64):
    """Return the scores of chosen and rejected responses."""

    def side(responses, labels):
        policy, reference, tokens = (torch.tensor(one, dtype=dtype) for one in zip(*responses, strict=True))
        confidence, margin = (torch.tensor(one, dtype=dtype) for one in zip(*labels, strict=True))
        named = {"confidence": confidence, "margin": margin}
        by_token = [(one / tokens).repeat_interleave(tokens.long()) for one in (policy, reference)]
        kl = (policy - reference).abs() / 4
        return Scores(policy.requires_grad_(), tokens, reference, named, *by_token, kl=kl)

    chosen, rejected, labels = zip(*pairs, strict=True)
    return side(chosen, labels), side(rejected, labels)


def statistics_of(loss, chosen, rejected):
    """Return the statistics of a batch, with the chosen responses as KL rows."""
    sums = loss.sums(chosen, rejected, chosen)
    return None if sums is None else loss.statistics(sums, None)


def values_of(loss, pairs, statistics):
    """Return the values of each pair, one or of both its responses, `(pairs, values)`."""
    return loss(*sides_of(pairs), statistics).detach().view(-1, len(pairs)).T


@each
@settings(max_examples=20)
@given(pairs=pairs_of(NATS), random=st.randoms(use_true_random=False))
def test_another_order_and_smaller_batches_have_the_same_values(loss, pairs, random):
    statistics = statistics_of(loss, *sides_of(pairs))
    values = values_of(loss, pairs, statistics)
    order = random.sample(range(len(pairs)), len(pairs))
    mixed = [pairs[i] for i in order]
    torch.testing.assert_close(values_of(loss, mixed, statistics), values[order], rtol=1e-9, atol=1e-9)
    cut = random.randint(0, len(pairs))
    parts = [values_of(loss, part, statistics) for part in (pairs[:cut], pairs[cut:]) if part]
    torch.testing.assert_close(torch.cat(parts), values, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(statistics_of(loss, *sides_of(mixed)), statistics, rtol=1e-9, atol=1e-9)


@each
@settings(max_examples=20)
@given(pairs=pairs_of(EXTREME))
def test_values_and_gradients_of_extreme_log_probs_are_finite(loss, pairs):
    chosen, rejected = sides_of(pairs, torch.float32)
    values = loss(chosen, rejected, statistics_of(loss, chosen, rejected))
    gradients = torch.autograd.grad(values.sum(), [chosen.policy, rejected.policy], allow_unused=True)
    for one in (values, loss.rewards(chosen), *(gradient for gradient in gradients if gradient is not None)):
        assert one.isfinite().all()


@each
def test_a_batch_without_examples_has_no_values_and_a_gradient_of_0(loss):
    policy = torch.tensor([-4.0, -9.0], requires_grad=True)
    none = torch.zeros(0)
    nothing = Scores(policy[:0], none, none, policy_tokens=policy[:0], reference_tokens=none, kl=none)
    values = loss(nothing, nothing, statistics_of(loss, nothing, nothing))
    assert values.shape == (0,)
    assert torch.equal(torch.autograd.grad(values.sum(), policy)[0], torch.zeros(2))


@pytest.mark.parametrize("loss", [one for one in LOSSES if one != DiscoPOP()], ids=str)  # which is not monotone
def test_where_policy_and_reference_are_equal_a_step_makes_the_chosen_response_the_more_likely_one(loss):
    sides = sides_of([((-4.0, -4.0, 2), (-4.0, -4.0, 2), (1.0, 0.0))])
    values = loss(*sides, statistics_of(loss, *sides))
    up, down = torch.autograd.grad(values.sum(), [side.policy for side in sides], allow_unused=True)
    assert up < (0 if down is None else down)
