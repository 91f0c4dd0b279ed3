from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch import Trainer

from lit_tr import PreferenceDataModule, PreferenceModule
from lit_tr.data import Rows
from lit_tr.embedded import SyntheticPairs
from lit_tr.errors import UserError
from lit_tr.losses import BCO, KTO, Scores
from lit_tr.reference import FrozenReference
from tests.test_resume import QUIET, assert_went_on, module, run

NONE = Scores(torch.zeros(0), torch.zeros(0), torch.zeros(0))


def side(log_ratios, **labels):
    policy = torch.tensor(log_ratios, dtype=torch.float64, requires_grad=True)
    zeros = torch.zeros(len(log_ratios), dtype=torch.float64)
    named = {name: torch.tensor(values, dtype=torch.float64) for name, values in labels.items()}
    return Scores(policy, torch.ones(len(log_ratios)), zeros, named)


def by_hand(beta, chosen, rejected, shift, weights):
    """Values, and their gradients in the log-probs, in numpy."""
    up = beta * np.array(chosen) - shift
    down = shift - beta * np.array(rejected)
    weights = np.array([1.0] * len(up) + weights)
    logits = np.concatenate([up, down])
    slope = beta * np.array([1.0] * len(up) + [-1.0] * len(down))
    return weights * np.log1p(np.exp(-logits)), -weights * slope / (1 + np.exp(logits))


def close(found, expected):
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_values_and_gradients_by_hand():
    chosen, rejected, statistics = side([2.0, -1.0]), side([-1.0, 1.0, 3.0]), torch.tensor([1.5, 5.0]).double()
    values = BCO(beta=0.5)(chosen, rejected, statistics)
    expected, slopes = by_hand(0.5, [2, -1], [-1, 1, 3], 0.3, [1.0] * 3)
    close(values, expected)
    close(torch.cat(torch.autograd.grad(values.sum(), (chosen.policy, rejected.policy))), slopes)


def test_the_weight_of_a_row_is_that_of_its_loss():
    chosen, rejected = side([2.0], weight=[1.0]), side([-1.0, 1.0, 3.0], weight=[0.5, float("nan"), 10.0])
    expected, _ = by_hand(0.5, [2], [-1, 1, 3], 0.0, [0.5, 1.0, 10.0])
    close(BCO(beta=0.5)(chosen, rejected), expected)
    assert torch.equal(BCO().sums(chosen, rejected, NONE), BCO().sums(side([2.0]), side([-1.0, 1.0, 3.0]), NONE))


def test_an_uncertain_label_is_its_expectation():
    up, down = BCO()(side([2.0]), NONE), BCO()(NONE, side([2.0]))
    torch.testing.assert_close(BCO()(side([2.0], confidence=[0.8]), NONE), 0.8 * up + 0.2 * down)
    torch.testing.assert_close(BCO()(NONE, side([2.0], confidence=[0.8])), 0.8 * down + 0.2 * up)


def test_the_shift_is_the_mean_reward_of_all_responses_so_far():
    """Beside TRL's running mean: mean += (mean of the batch - mean) * its responses / all responses."""
    draw, loss, statistics, mean, count = np.random.default_rng(0), BCO(beta=0.5), None, 0.0, 1e-24
    for sizes in [(3, 1), (2, 2), (0, 5), (4, 0)] * 50:
        chosen, rejected = (side(draw.normal(3, 2, size)) for size in sizes)
        statistics = loss.statistics(loss.sums(chosen, rejected, NONE), statistics)
        rewards = 0.5 * torch.cat([chosen.policy, rejected.policy]).detach().numpy()
        mean += (rewards.mean() - mean) * len(rewards) / (count + len(rewards))
        count += len(rewards)
    assert statistics.dtype == torch.float64
    assert statistics[1] == count == 50 * 17
    assert (statistics[0] / statistics[1]).item() == pytest.approx(mean, rel=1e-12)


RATIOS = st.lists(st.floats(-20, 20, width=32), max_size=6)


@given(RATIOS, RATIOS, st.randoms(use_true_random=False), st.integers(0, 6))
def test_examples_do_not_depend_on_their_order_and_batch(chosen, rejected, draw, cut):
    statistics = torch.tensor([-7.0, 30.0]).double()
    whole = BCO()(side(chosen), side(rejected), statistics)
    order = draw.sample(range(len(chosen)), len(chosen))
    shuffled = BCO()(side([chosen[i] for i in order]), side(rejected), statistics)
    assert torch.equal(shuffled, torch.cat([whole[order], whole[len(chosen) :]]))
    parts = [BCO()(side(a), side(b), statistics) for a, b in ((chosen[:cut], []), (chosen[cut:], rejected))]
    assert torch.equal(torch.cat(parts), whole)


@given(RATIOS, RATIOS)
def test_sums_of_batches_are_those_of_the_whole(chosen, rejected):
    halves = BCO().sums(side(chosen), NONE, NONE) + BCO().sums(NONE, side(rejected), NONE)
    torch.testing.assert_close(BCO().sums(side(chosen), side(rejected), NONE), halves)


def test_a_batch_without_examples_changes_nothing():
    assert BCO()(NONE, NONE, BCO().statistics(BCO().sums(NONE, NONE, NONE), None)).shape == (0,)
    before = torch.tensor([1.5, 5.0]).double()
    assert torch.equal(BCO().statistics(BCO().sums(NONE, NONE, NONE), before), before)


def test_beta_is_checked():
    with pytest.raises(UserError, match="BCO: beta must be above 0"):
        BCO(beta=0)


class Recorded(BCO):
    """Keeps what each batch was given."""

    seen = []

    def __call__(self, chosen, rejected, statistics=None):
        values = super().__call__(chosen, rejected, statistics)
        if chosen.policy.requires_grad:
            sides = (replace(one, policy=one.policy.detach()) for one in (chosen, rejected))
            self.seen.append((*map(self.rewards, sides), values.detach()))
        return values


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_batch_is_of_its_own_shift_and_evaluations_of_none(llama_dir, accumulate):
    """4 optimizer steps on 14 pairs, 2 to a batch, with validations between them."""
    Recorded.seen.clear()
    options = {"max_steps": 4, "max_epochs": -1, "val_check_interval": 2, "accumulate_grad_batches": accumulate}
    trained = run(llama_dir, "copy soft", options, loss=Recorded(beta=0.5))
    assert len(Recorded.seen) == {1: 4, 2: 7}[accumulate]  # of an epoch of 7 batches
    total = count = 0
    for chosen, rejected, values in Recorded.seen:
        rewards = torch.cat([chosen, rejected]).double()
        total, count = total + rewards.sum().item(), count + len(rewards)
        expected, _ = by_hand(1.0, chosen.tolist(), rejected.tolist(), total / count, [1.0] * len(rejected))
        torch.testing.assert_close(values, torch.tensor(expected).float())
    assert abs(total / count) > 1e-3
    assert trained.scorer.statistics.tolist() == [pytest.approx(total), count]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_four_steps_are_two_and_two_more(llama_dir, tmp_path, accumulate):
    options = {"max_epochs": -1, "accumulate_grad_batches": accumulate}
    whole = run(llama_dir, "copy soft", {**options, "max_steps": 4}, loss=BCO(beta=0.5))
    run(llama_dir, "copy soft", {**options, "max_steps": 2}, tmp_path, loss=BCO(beta=0.5))
    path = tmp_path / "last.ckpt"
    resumed = run(llama_dir, "copy soft", {**options, "max_steps": 4}, ckpt_path=path, loss=BCO(beta=0.5))
    assert len(resumed.losses) == len(whole.losses) - 2 * accumulate
    assert_went_on(resumed, whole)
    assert torch.equal(resumed.scorer.statistics, whole.scorer.statistics)


def test_an_evaluation_goes_by_the_shift_of_its_checkpoint(llama_dir, tmp_path):
    trained = run(llama_dir, "copy soft", {"max_steps": 4}, tmp_path, loss=BCO(beta=0.5))
    rows = PreferenceDataModule(llama_dir, SyntheticPairs(4), val=SyntheticPairs(3, seed=8), batch_size=2)
    losses = []
    for evaluated, path in ((trained, None), (module(llama_dir, "copy soft", BCO(beta=0.5)), tmp_path / "last.ckpt")):
        trainer = Trainer(enable_checkpointing=False, **QUIET)
        losses.append(trainer.validate(evaluated, rows, ckpt_path=path, verbose=False)[0]["val/loss"])
        assert torch.equal(evaluated.scorer.statistics, trained.scorer.statistics)
    assert losses[0] == losses[1]
    other = PreferenceModule.load_from_checkpoint(tmp_path / "last.ckpt", loss=KTO())
    assert other.scorer.statistics is None  # the shift is none of KTO's


def test_it_learns_from_pairs_and_unpaired_rows_in_one_batch(llama_dir, write_rows, rows):
    unpaired = [
        {"prompt": row["prompt"], "completion": row[name], "label": name == "chosen"}
        for row, name in zip(rows[:3], ("chosen", "rejected", "rejected"), strict=True)
    ]
    model = module(llama_dir, "frozen", BCO(beta=0.5))
    model.reference = FrozenReference()
    data = PreferenceDataModule(llama_dir, Rows(write_rows([*unpaired, rows[3]])), batch_size=4)
    trainer = Trainer(enable_checkpointing=False, max_steps=8, **QUIET)
    trainer.fit(model, data)
    losses = [loss for _, loss in model.losses]
    assert losses[0] == pytest.approx(np.log(2))
    assert losses[-1] < 0.6
    assert model.scorer.statistics[1] == 8 * 5  # of a pair and three rows
