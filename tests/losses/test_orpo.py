import math
from dataclasses import replace
from types import SimpleNamespace

import torch
from trl.experimental.orpo import ORPOTrainer

from lit_tr.losses import ORPO, Scores
from tests.losses.examples import CHOSEN, computed, drawn, gives, log_sigmoid, sigmoid


def log_odds(m):
    return m - math.log(1 - math.exp(m))


def value(m, other):
    return -m - 0.5 * log_sigmoid(log_odds(m) - log_odds(other))


# mean log-probs: chosen -2 and -2.25, rejected -1.4 and -3
PAIRS = [(-2, -1.4), (-2.25, -3)]


def test_by_hand():
    slopes = [0.5 * sigmoid(log_odds(other) - log_odds(m)) for m, other in PAIRS]
    odds = [[1 / (1 - math.exp(m)) for m in side] for side in zip(*PAIRS, strict=True)]
    chosen = [-(1 + s * o) / tokens for s, o, tokens in zip(slopes, odds[0], (2, 4), strict=True)]
    rejected = [s * o / tokens for s, o, tokens in zip(slopes, odds[1], (5, 1), strict=True)]
    gives(ORPO(beta=0.5), [value(*pair) for pair in PAIRS], chosen, rejected)
    expected = [0.9 * value(-2, -1.4) + 0.1 * value(-1.4, -2), 0.5 * value(-2.25, -3) + 0.5 * value(-3, -2.25)]
    gives(ORPO(beta=0.5), expected, confidence=[0.9, 0.5])


def test_rewards_are_log_odds_and_need_no_reference():
    expected = torch.tensor([log_odds(-2), log_odds(-2.25)], dtype=torch.float64)
    torch.testing.assert_close(ORPO().rewards(replace(CHOSEN, reference=None)), expected)


def theirs(chosen, rejected, statistics=None):
    """TRL's odds ratio, and the NLL of each pair."""
    trainer = SimpleNamespace(beta=0.3, accelerator=SimpleNamespace(device="cpu"))
    means = [side.policy / side.tokens for side in (chosen, rejected)]
    return -means[0] - ORPOTrainer.odds_ratio_loss(trainer, *means)[0]


def test_values_and_gradients_are_those_of_trl():
    for one, expected in zip(computed(ORPO(beta=0.3), *drawn()), computed(theirs, *drawn()), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-5, atol=1e-5)


def test_a_response_of_probability_1_is_finite():
    certain = Scores(torch.zeros(1), torch.ones(1))
    assert all(one.isfinite().all() for one in computed(ORPO(), certain, Scores(-torch.ones(1), torch.ones(1))))
