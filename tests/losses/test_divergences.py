import math

import pytest
import torch

from lit_tr.losses import DPO, EXO, AlphaDivergence, DiscoPOP, ForwardKL, Hinge, JensenShannon, ReverseKL, RobustDPO
from tests.losses.examples import CHOSEN, REJECTED, equal, gives, log_sigmoid, sigmoid

DERIVATIVES = [  # in policy over reference, and the derivative of that in the log-ratio
    (ReverseKL(), math.log, lambda u: 1),  # f = u log(u) - u
    (ForwardKL(), lambda u: 1 - 1 / u, lambda u: 1 / u),  # f = -log(u) + u
    (JensenShannon(), lambda u: math.log(2 * u / (1 + u)), lambda u: 1 / (1 + u)),
    (AlphaDivergence(0.5), lambda u: 2 - 2 / math.sqrt(u), lambda u: 1 / math.sqrt(u)),
    (AlphaDivergence(3.0), lambda u: (u**2 - 1) / 2, lambda u: u**2),
]
DIVERGENCES = [divergence for divergence, *_ in DERIVATIVES]


@pytest.mark.parametrize(("divergence", "derivative", "slope"), DERIVATIVES)
def test_dpo_goes_by_the_derivative_of_its_divergence(divergence, derivative, slope):
    loss = DPO(beta=0.5, divergence=divergence)
    ratios = [[math.exp(h) for h in side] for side in ((2, -1), (-1, 1))]
    rewards = [[0.5 * derivative(u) for u in side] for side in ratios]
    for side, expected in zip((CHOSEN, REJECTED), rewards, strict=True):
        assert loss.rewards(side).tolist() == pytest.approx(expected)
    margins = [chosen - rejected for chosen, rejected in zip(*rewards, strict=True)]
    up, down = ([0.5 * slope(u) * sigmoid(-x) for u, x in zip(side, margins, strict=True)] for side in ratios)
    gives(loss, [-log_sigmoid(x) for x in margins], [-one for one in up], down)


@pytest.mark.parametrize(
    ("divergence", "options"),
    [
        (ForwardKL(), {"f_divergence_type": "forward_kl"}),
        (JensenShannon(), {"f_divergence_type": "js_divergence"}),
        (AlphaDivergence(0.5), {"f_divergence_type": "alpha_divergence"}),
        (AlphaDivergence(1.5), {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1.5}),
    ],
)
@pytest.mark.parametrize(
    ("kind", "loss"), [("sigmoid", DPO), ("robust", RobustDPO), ("hinge", Hinge), ("exo_pair", EXO)]
)
def test_values_and_gradients_are_those_of_trl(trl, divergence, options, kind, loss):
    smoothing = {} if kind in ("sigmoid", "hinge") else {"label_smoothing": 0.2}
    trl(loss(beta=0.1, divergence=divergence, **smoothing), kind, 0.1, **options, **smoothing)


@pytest.mark.parametrize("loss", [DPO, RobustDPO, Hinge, EXO, DiscoPOP])
def test_alpha_1_is_the_reverse_kl_and_0_the_forward_one(loss):
    equal(loss(divergence=AlphaDivergence(1.0)), loss())
    equal(loss(divergence=AlphaDivergence(1.0 - 1e-7)), loss())
    equal(loss(divergence=AlphaDivergence(0.0)), loss(divergence=ForwardKL()))


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_exponents_stop_at_80_without_a_gradient_beyond(divergence):
    log_ratios = torch.tensor([-1e4, -81.0, -1.0, 0.0, 1.0, 81.0, 1e4], requires_grad=True)
    values = divergence.derivative(log_ratios)
    (gradient,) = torch.autograd.grad(values.sum(), log_ratios)
    assert values.isfinite().all()
    assert gradient.isfinite().all()
    assert (values.diff() >= 0).all()
    assert (gradient[2:5] > 0).all()
    if divergence == ForwardKL():
        assert values[0] == values[1] == 1 - torch.tensor(80.0).exp()
        assert gradient[0] == gradient[1] == 0
