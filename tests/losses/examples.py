"""Scores of two pairs to compute with by hand, and what a loss makes of them."""

import math
from dataclasses import replace

import torch

from lit_tr.losses import Scores


def scores(policy, reference, tokens, **labels):
    """Scores in float64."""
    policy, reference, tokens = (torch.tensor(values, dtype=torch.float64) for values in (policy, reference, tokens))
    return Scores(policy, tokens, reference, {k: torch.tensor(v, dtype=torch.float64) for k, v in labels.items()})


# log-ratios: chosen 2 and -1, rejected -1 and 1; differences 3 and -2, without the reference 3 and -6
CHOSEN = scores([-4.0, -9.0], [-6.0, -8.0], [2, 4])
REJECTED = scores([-7.0, -3.0], [-6.0, -4.0], [5, 1])
UNCERTAIN = {"confidence": [0.9, 0.5], "margin": [2.0, -1.0]}


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def labelled(side, **labels):
    return replace(side, labels={k: torch.tensor(v, dtype=torch.float64) for k, v in labels.items()})


def computed(loss, chosen=CHOSEN, rejected=REJECTED, statistics=None):
    """Return the values of a loss, and the gradients of their sum on the log-probs of chosen and rejected responses."""
    sides = [replace(side, policy=side.policy.clone().requires_grad_()) for side in (chosen, rejected)]
    values = loss(*sides, statistics)
    gradients = torch.autograd.grad(values.sum(), [side.policy for side in sides], allow_unused=True)
    return [values.detach(), *(torch.zeros(0) if gradient is None else gradient for gradient in gradients)]


def gives(loss, values, chosen=None, rejected=None, **labels):
    """Assert the values of a loss on the pairs, and its gradients on chosen and rejected log-probs where given."""
    found = computed(loss, labelled(CHOSEN, **labels), labelled(REJECTED, **labels))
    for one, expected in zip(found, (values, chosen, rejected), strict=True):
        if expected is not None:
            torch.testing.assert_close(one, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def drawn(size=16, seed=0):
    """Random scores of pairs in float32; numbers of tokens are powers of two, so that means and sums are exact."""
    draw = torch.Generator().manual_seed(seed)

    def side():
        policy, tokens = -20 * torch.rand(size, generator=draw) - 1, 2 ** torch.randint(0, 5, (size,), generator=draw)
        return Scores(policy, tokens, policy + 4 * torch.randn(size, generator=draw))

    return side(), side()


def equal(loss, other, chosen=None, rejected=None):
    """Assert that two losses have the same values and gradients, of random pairs if none are given."""
    sides = drawn() if chosen is None else (chosen, rejected)
    for one, expected in zip(computed(loss, *sides), computed(other, *sides), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-6)
