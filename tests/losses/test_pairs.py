import inspect
from dataclasses import dataclass

import pytest

from lit_tr import losses
from lit_tr.errors import UserError
from lit_tr.losses import DifferenceLoss, ForwardKL, PairLoss
from tests.losses.examples import CHOSEN, REJECTED, gives

KINDS = [one for one in vars(losses).values() if inspect.isclass(one) and issubclass(one, losses.Loss)]
NO_BETA = {losses.SFT, losses.Weighted}
KINDS = [one for one in KINDS if not inspect.isabstract(one) and one not in NO_BETA]


@dataclass(frozen=True)
class Gap(PairLoss):
    """The reward of the other response."""

    def value(self, preferred, other):
        return self.rewards(other)


def test_a_pair_loss_is_the_expectation_over_the_label():
    # rewards of chosen 1 and -0.5, of rejected -0.5 and 0.5
    gives(Gap(beta=0.5), [-0.5, 0.5], [0, 0], [0.5, 0.5])
    gives(Gap(beta=0.5), [-0.5 * 0.9 + 0.1, 0.0], [0.05, 0.25], [0.45, 0.25], confidence=[0.9, 0.5])


@dataclass(frozen=True)
class Difference(DifferenceLoss):
    """The reward margin."""

    def __call__(self, chosen, rejected, statistics=None):
        return self.margins(chosen, rejected)


def test_rewards_go_by_divergence_and_length():
    loss = Difference(beta=0.5, average="mean")
    assert loss.rewards(CHOSEN).tolist() == [0.5, -0.125]  # log-ratios 2 and -1, of 2 and 4 tokens
    gives(loss, [0.5 * (1 + 0.2), 0.5 * (-0.25 - 1)], [0.25, 0.125], [-0.1, -0.5])
    loss = Difference(beta=0.5, divergence=ForwardKL(), average="mean")
    expected = ForwardKL().derivative(CHOSEN.log_ratios) * 0.5 / CHOSEN.tokens
    assert loss.rewards(CHOSEN).tolist() == pytest.approx(expected.tolist())
    assert loss(CHOSEN, REJECTED).tolist() == pytest.approx((expected - loss.rewards(REJECTED)).tolist())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("beta", [0, -1])
def test_beta_is_above_0(kind, beta):
    with pytest.raises(UserError, match=f"{kind.__name__}: beta must be above 0, not {beta}"):
        kind(beta=beta)
