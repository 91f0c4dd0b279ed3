import torch

from lit_tr.losses import SFT, Scores
from tests.losses.examples import CHOSEN, UNCERTAIN, gives


def test_the_mean_over_tokens():
    gives(SFT(), [2.0, 2.25], [-1 / 2, -1 / 4])
    gives(SFT(), [2.0, 2.25], [-1 / 2, -1 / 4], **UNCERTAIN)
    assert SFT().rewards(CHOSEN).tolist() == [-2, -2.25]


def test_rejected_responses_alone_have_nothing_to_learn():
    policy = torch.tensor([-4.0, -9.0], requires_grad=True)
    values = SFT()(Scores(policy[:0], torch.zeros(0)), Scores(policy, torch.ones(2)))
    assert torch.equal(torch.autograd.grad(values.sum(), policy)[0], torch.zeros(2))
