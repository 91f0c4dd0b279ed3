import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_tr.errors import UserError
from lit_tr.losses import DPO, LDDPO, Scores


def side(responses, dtype=torch.float64):
    """Scores of responses, each the log-probs of its tokens under the policy; those of the reference are half of it."""
    tokens = torch.tensor([value for one in responses for value in one], dtype=dtype, requires_grad=True)
    lengths = torch.tensor([len(one) for one in responses], dtype=torch.long)
    parts = tokens.split(lengths.tolist()) if responses else []
    policy = torch.stack([one.sum() for one in parts]) if responses else tokens
    return Scores(policy, lengths, policy.detach() / 2, policy_tokens=tokens, reference_tokens=tokens.detach() / 2)


CHOSEN = [[-1.0, -2.0, -4.0], [-3.0]]
REJECTED = [[-2.0, -3.0], [-1.0, -1.0, -2.0, -6.0]]


def test_values_and_gradients_by_hand():
    """The first pair counts 2 tokens of 3 and 2, the second 1 of 1 and 4; log-ratios are half the log-probs."""
    chosen, rejected = side(CHOSEN), side(REJECTED)
    values = LDDPO(beta=0.5, ld_alpha=0.25)(chosen, rejected)
    logits = [
        0.5 * ((-3 - 0.25 * 4) / 2 - (-5 / 2)),
        0.5 * (-3 / 2 - (-1 - 0.25 * 9) / 2),
    ]
    torch.testing.assert_close(values, torch.tensor([math.log1p(math.exp(-x)) for x in logits], dtype=torch.float64))
    slopes = [-0.5 / (1 + math.exp(x)) for x in logits]
    found = torch.autograd.grad(values.sum(), (chosen.policy_tokens, rejected.policy_tokens))
    expected = [
        [slopes[0], slopes[0], slopes[0] / 4, slopes[1]],
        [-slopes[0], -slopes[0], -slopes[1], -slopes[1] / 4, -slopes[1] / 4, -slopes[1] / 4],
    ]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, torch.tensor(other, dtype=torch.float64))


def test_with_0_responses_count_to_the_same_length():
    shortened = side([[-1.0, -2.0], [-3.0]]), side([[-2.0, -3.0], [-1.0]])
    torch.testing.assert_close(LDDPO(ld_alpha=0.0)(side(CHOSEN), side(REJECTED)), DPO()(*shortened))


def test_1_is_dpo_in_each_bit():
    draw = torch.Generator().manual_seed(0)
    both = [
        side([(3 * torch.randn(int(n), generator=draw)).tolist() for n in torch.randint(1, 40, (64,), generator=draw)],
             torch.float32)
        for _ in range(2)
    ]  # fmt: skip
    values = [loss(*both) for loss in (DPO(0.1, 0.1), LDDPO(0.1, 0.1, ld_alpha=1.0))]
    assert torch.equal(*values)
    gradients = [torch.autograd.grad(one.sum(), both[0].policy_tokens, retain_graph=True)[0] for one in values]
    assert torch.equal(*gradients)


PAIRS = st.lists(st.tuples(*[st.lists(st.floats(-9, 0, width=32), min_size=1, max_size=5)] * 2), min_size=1, max_size=5)


@given(PAIRS, st.randoms(use_true_random=False), st.integers(0, 5))
def test_pairs_do_not_depend_on_their_order_and_batch(pairs, draw, cut):
    def values(some):
        return LDDPO(beta=0.5)(side([one for one, _ in some]), side([other for _, other in some]))

    whole, order = values(pairs), draw.sample(range(len(pairs)), len(pairs))
    torch.testing.assert_close(values([pairs[i] for i in order]), whole[order])
    parts = [values(part) for part in (pairs[:cut], pairs[cut:]) if part]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_rewards_are_those_of_whole_responses():
    torch.testing.assert_close(
        LDDPO(beta=0.5, ld_alpha=0.0).rewards(side(CHOSEN)), torch.tensor([-1.75, -0.75]).double()
    )


def test_a_batch_without_examples():
    assert LDDPO()(side([]), side([])).shape == (0,)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="ld_alpha must be in"):
        LDDPO(ld_alpha=1.5)
    with pytest.raises(UserError, match="beta must be above 0"):
        LDDPO(beta=0)
    one = torch.ones(1)
    with pytest.raises(UserError, match="log-probs of tokens"):
        LDDPO()(Scores(one, one, one), Scores(one, one, one))
