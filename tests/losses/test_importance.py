import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lit_tr.errors import UserError
from lit_tr.losses import DPO, IPO, ISDPO, ISIPO
from tests.losses.examples import CHOSEN, drawn, equal, gives, log_sigmoid, sigmoid

# log-ratios of a pair sum to 1 and 0: with a clip of 0.25, e^min(1, 0.5) and e^0
RATIO = math.exp(0.5)


def test_dpo_by_hand_without_a_gradient_of_the_ratio():
    gradient = [RATIO * 0.5 * sigmoid(-1.5), 0.5 * sigmoid(1)]
    expected = [-RATIO * log_sigmoid(1.5), -log_sigmoid(-1)]
    gives(ISDPO(beta=0.5, clip=0.25), expected, [-one for one in gradient], gradient)
    expected = [RATIO * (-0.9 * log_sigmoid(1.0) - 0.1 * log_sigmoid(-1.0)), -log_sigmoid(-0.75)]
    loss = ISDPO(beta=0.5, margin_scale=0.25, clip=0.25)
    gives(loss, expected, confidence=[0.9, 1.0], margin=[2.0, -1.0])
    assert ISDPO(beta=0.5).rewards(CHOSEN).tolist() == [1, -0.5]


def test_ipo_by_hand_without_a_gradient_of_the_ratio():
    # margins 3 and -2, drawn to 1 / (2 * 0.25) = 2
    gradient = [RATIO * 2 * (3 - 2), 2 * (-2 - 2)]
    gives(ISIPO(beta=0.25, clip=0.25), [RATIO, 16], gradient, [-one for one in gradient])


@pytest.mark.parametrize("clip", [0.25, 1.0])
def test_it_is_that_of_the_authors(clip):
    """As in their cli/train_is_dpo.py, with the reference as the policy of the data."""
    chosen, rejected = drawn()
    total = chosen.policy - chosen.reference + rejected.policy - rejected.reference
    logits = (chosen.policy - rejected.policy) - (chosen.reference - rejected.reference)
    ratio = torch.exp(total.clamp(max=2 * clip))
    assert len(ratio.unique()) > 4
    expected = -ratio * F.logsigmoid(0.05 * logits), ratio * (logits - 1 / (2 * 0.05)) ** 2
    for loss, values in zip((ISDPO(0.05, clip=clip), ISIPO(0.05, clip=clip)), expected, strict=True):
        torch.testing.assert_close(loss(chosen, rejected), values, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("loss", "plain"), [(ISDPO(), DPO()), (ISIPO(), IPO())])
def test_a_policy_that_is_the_reference_gives_the_plain_loss(loss, plain):
    sides = [replace(side, reference=side.policy) for side in drawn()]
    equal(loss, plain, *sides)


@pytest.mark.parametrize("kind", [ISDPO, ISIPO])
def test_bad_arguments_are_named(kind):
    with pytest.raises(UserError, match=f"{kind.__name__}: clip must not be negative"):
        kind(clip=-1)
