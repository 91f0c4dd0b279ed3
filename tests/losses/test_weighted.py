import copy
import math
import pickle
from dataclasses import dataclass, replace
from typing import ClassVar, get_origin, get_type_hints

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_tr.commands.fit import LitTRCLI
from lit_tr.embedded import TINY
from lit_tr.errors import UserError
from lit_tr.hparams import instantiate
from lit_tr.losses import BCO, DPO, IPO, KTO, LDDPO, SFT, Loss, Scores, SimPO, Weighted
from lit_tr.losses.weighted import FLAGS
from lit_tr.module import PreferenceModule
from lit_tr.reference import CopyReference
from tests.test_resume import assert_went_on, run


def side(log_ratios, tokens=2):
    """Scores of responses with log-probs of -3 under the reference, in tokens that share them evenly."""
    policy = torch.tensor(log_ratios, dtype=torch.float64).sub(3).requires_grad_()
    reference, lengths = torch.full_like(policy, -3.0).detach(), torch.full((len(log_ratios),), tokens)
    of_tokens = [(one / tokens).repeat_interleave(tokens) for one in (policy, reference)]
    return Scores(policy, lengths, reference, {}, *of_tokens)


CHOSEN, REJECTED, NONE = side([2.0, -1.0]), side([-1.0, 1.0], 5), side([])
ALONE = {"paired": True, "needs_reference": True, "token_level": False, "mismatched": False}


def gradients(values):
    return torch.autograd.grad(values.mean(), (CHOSEN.policy, REJECTED.policy), allow_unused=True, retain_graph=True)


def test_values_by_hand():
    """DPO's logits are 1.5 and -1, mean log-probs of the chosen -1/2 and -4/2."""
    expected = [math.log1p(math.exp(-1.5)) + 0.5 * 0.5, math.log1p(math.exp(1)) + 0.5 * 2.0]
    found = Weighted([DPO(beta=0.5), SFT()], [1.0, 0.5])(CHOSEN, REJECTED)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))


LOSSES = [DPO(0.5), IPO(0.5), KTO(0.5), BCO(0.5), SFT(), SimPO(), LDDPO(0.5, ld_alpha=0.3)]
CHOICES = st.lists(st.tuples(st.sampled_from(LOSSES), st.floats(0.01, 5)), max_size=4)


@given(CHOICES)
def test_of_pairs_the_gradient_is_the_sum_of_the_losses_own(choices):
    choices = [(DPO(0.1), 1.0), *choices]
    losses, weights = [list(values) for values in zip(*choices, strict=True)]
    loss = Weighted(losses, weights)
    kl_rows = side([0.5, 0.7])

    def of(one):
        sums = one.sums(CHOSEN, REJECTED, kl_rows)
        return one(CHOSEN, REJECTED, None if sums is None else one.statistics(sums, None))

    assert of(loss).shape == (2,)
    expected = sum(weight * of(one).mean() for one, weight in choices)
    torch.testing.assert_close(of(loss).mean(), expected)
    for one, other in zip(gradients(of(loss)), gradients(expected), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("other", [KTO(), SFT(), BCO(), IPO()])
@pytest.mark.parametrize("loss", [DPO(0.5), SFT(), KTO(0.5), LDDPO(0.5)])
def test_a_weight_of_0_is_no_loss(loss, other):
    statistics = torch.tensor([0.4]) if loss.mismatched else None
    expected = loss(CHOSEN, REJECTED, statistics)
    for weighted in (Weighted([loss, other], [1.0, 0.0]), Weighted([other, loss], [0.0, 1.0]), Weighted([loss])):
        assert torch.equal(weighted(CHOSEN, REJECTED, statistics), expected)
        assert torch.equal(weighted.rewards(CHOSEN), loss.rewards(CHOSEN))
        assert {name: getattr(weighted, name) for name in FLAGS} == {name: getattr(loss, name) for name in FLAGS}
        assert weighted.beta == loss.beta


@pytest.mark.parametrize(
    ("losses", "needs"),
    [
        ([DPO(), SFT()], {}),
        ([SFT(), SimPO()], {"needs_reference": False}),
        ([KTO(), SFT()], {"mismatched": True, "paired": False}),
        ([BCO(), DPO()], {}),
        ([LDDPO(), KTO()], {"mismatched": True, "token_level": True}),
        ([Weighted([KTO()]), SFT()], {"mismatched": True, "paired": False}),
    ],
)
def test_it_needs_what_one_of_its_losses_needs(losses, needs):
    assert {name: getattr(Weighted(losses), name) for name in ALONE} == ALONE | needs


def test_each_flag_of_a_loss_is_known():
    hints = get_type_hints(Loss)
    assert set(FLAGS) == {name for name, hint in hints.items() if get_origin(hint) is ClassVar} >= {*ALONE}


@dataclass(frozen=True)
class Steps(Loss):
    """A loss whose statistics are a matrix: the number of steps, and of responses, in four places each."""

    beta: float = 1.0

    def __call__(self, chosen, rejected, statistics=None):
        assert statistics.shape == (2, 4)
        return chosen.policy * 0 + statistics[1].sum()

    def sums(self, chosen, rejected, kl_rows):
        return torch.full((3,), float(len(chosen.policy)))

    def statistics(self, sums, previous):
        now = torch.stack([torch.ones(4), sums[:1].expand(4)])
        return now if previous is None else previous + now


def test_statistics_of_each_loss_are_its_own():
    losses = [DPO(0.5), KTO(0.5), Steps(), BCO(0.5), Weighted([SFT(), BCO(0.1)])]
    weighted, previous, alone = Weighted(losses, [1.0, 2.0, 3.0, 4.0, 5.0]), None, [None] * 5
    for ranks in ([CHOSEN, REJECTED], [side([3.0]), side([0.5])], [NONE, NONE]):
        batches = [(*ranks, side([0.5])), (NONE, side([4.0]), NONE)]
        previous = weighted.statistics(sum(weighted.sums(*batch) for batch in batches), previous)
        for number, loss in enumerate(losses):
            if loss.sums(*batches[0]) is not None:
                alone[number] = loss.statistics(sum(loss.sums(*batch) for batch in batches), alone[number])
        values = weighted(*ranks, previous)
        pairs = len(ranks[0].policy)
        parts = [loss(*ranks, own) for loss, own in zip(losses, alone, strict=True)]
        means = [one if len(one) == pairs else one.view(2, pairs).mean(0) for one in parts]
        expected = sum(weight * one for weight, one in zip(weighted.weights, means, strict=True))
        torch.testing.assert_close(values, expected)
    assert Weighted([DPO(), SFT()]).sums(CHOSEN, REJECTED, NONE) is None


def test_unpaired_responses_are_examples_and_sft_says_nothing_of_undesirable_ones():
    rejected = side([-1.0, 1.0, 0.5])
    found = Weighted([KTO(0.5), SFT()], [1.0, 0.1])(CHOSEN, rejected, torch.tensor([0.2]))
    expected = KTO(0.5)(CHOSEN, rejected, torch.tensor(0.2))
    expected[:2] += 0.1 * SFT()(CHOSEN, rejected)
    torch.testing.assert_close(found, expected)
    assert Weighted([KTO(), SFT()])(NONE, rejected).shape == (3,)


def test_a_batch_without_examples_has_a_gradient_of_0():
    policy = torch.ones(2, requires_grad=True)
    nothing = replace(NONE, policy=policy[:0])
    loss = Weighted([DPO(), SFT(), BCO(), LDDPO()])
    values = loss(nothing, nothing, loss.statistics(loss.sums(nothing, nothing, nothing), None))
    assert values.shape == (0,)
    assert torch.equal(torch.autograd.grad(values.sum(), policy)[0], torch.zeros(2))


@pytest.mark.parametrize(
    ("losses", "weights"), [([], None), ([DPO()], [1.0, 2.0]), ([DPO(), SFT()], [1.0, -1.0]), ([DPO()], [0.0])]
)
def test_weights_are_checked(losses, weights):
    with pytest.raises(UserError, match="Weighted: weights"):
        Weighted(losses, weights)


def test_it_is_copied_and_saved_whole():
    loss = Weighted([KTO(0.5), Weighted([LDDPO(), SFT()], [1.0, 0.5])], [2.0, 1.0])
    for other in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert other == loss
        assert (other.mismatched, other.token_level, other.beta) == (True, True, 0.5)
    module = PreferenceModule(TINY, CopyReference(), loss)
    assert instantiate(PreferenceModule, dict(module.hparams)).loss == loss


def test_a_run_goes_on(llama_dir, tmp_path):
    loss = Weighted([DPO(beta=0.5), BCO(beta=0.5), KTO(beta=0.5), SFT()], [1.0, 0.5, 0.5, 0.1])
    whole = run(llama_dir, "copy soft", {"max_steps": 4}, loss=loss)
    run(llama_dir, "copy soft", {"max_steps": 2}, tmp_path, loss=loss)
    resumed = run(llama_dir, "copy soft", {"max_steps": 4}, ckpt_path=tmp_path / "last.ckpt", loss=loss)
    assert_went_on(resumed, whole)
    assert torch.equal(resumed.scorer.statistics, whole.scorer.statistics)


YAML = """
model:
  policy: {lora: {r: 4}}
  reference: lit_tr.reference.AdapterReference
  loss:
    class_path: lit_tr.losses.Weighted
    init_args:
      losses:
        - {class_path: DPO, init_args: {beta: 0.3}}
        - {class_path: lit_tr.losses.KTO, init_args: {beta: 0.2}}
        - {class_path: SFT}
      weights: [1, 0.25, 0.5]
"""


@pytest.mark.slow
def test_the_quickstart_takes_it_with_lora_and_goes_on(tmp_path):
    (tmp_path / "weighted.yaml").write_text(YAML)
    small = [
        *("--data.train.init_args.size=32", "--data.val.init_args.size=8", "--trainer.callbacks=null"),
        *(f"--trainer.default_root_dir={tmp_path}", "--trainer.val_check_interval=null", "--trainer.logger=false"),
        *("--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"),
    ]
    configs = ["--config", "configs/quickstart.yaml", "--config", str(tmp_path / "weighted.yaml")]
    cli = LitTRCLI(args=["fit", *configs, *small, "--trainer.max_steps=1"])
    expected = Weighted([DPO(beta=0.3), KTO(beta=0.2), SFT()], [1.0, 0.25, 0.5])
    assert cli.model.loss == expected
    assert cli.datamodule.mismatched
    (path,) = tmp_path.rglob("last.ckpt")
    assert PreferenceModule.load_from_checkpoint(path).loss == expected
    resumed = LitTRCLI(args=["fit", *configs, *small, "--trainer.max_steps=2", f"--ckpt_path={path}"])
    assert resumed.trainer.global_step == 2
    assert resumed.model.loss == expected
