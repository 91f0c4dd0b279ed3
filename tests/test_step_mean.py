from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lit_tr import PreferenceDataModule, PreferenceModule
from lit_tr.data import Rows
from lit_tr.losses import DPO, KTO, SFT
from lit_tr.policy import PretrainedPolicy
from lit_tr.reference import FrozenReference
from lit_tr.step_mean import StepMean

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


def trainer_of(weight, batches, of_ranks=None):
    strategy = SimpleNamespace(
        root_device=torch.device("cpu"), reduce=lambda count, reduce_op: count if of_ranks is None else of_ranks
    )
    ranks = 1 if of_ranks is None else 2
    optimizers = [torch.optim.SGD([weight], lr=1.0)]
    return SimpleNamespace(strategy=strategy, optimizers=optimizers, accumulate_grad_batches=batches, world_size=ranks)


def step(batches, of_ranks=None):
    """Return the gradient of a step by hand: each batch is a list of values, whose loss is `weight * value`."""
    weight = torch.nn.Parameter(torch.tensor(1.0))
    mean, trainer = StepMean(), trainer_of(weight, len(batches), of_ranks)
    for values in batches:
        loss = (weight * torch.tensor(values)).sum() / max(len(values), 1)
        (mean.weigh(trainer, loss, len(values)) / len(batches)).backward()  # Lightning divides by the number of batches
    mean.normalise(trainer)
    return weight.grad.item()


@pytest.mark.parametrize("batches", [[[1.0, 2.0, 6.0]], [[1.0], [2.0, 6.0]], [[1.0, 2.0], [], [6.0]]])
def test_the_gradient_is_that_of_the_mean_over_examples(batches):
    assert step(batches) == pytest.approx(3.0)


def test_ranks_with_unequal_batches():
    """Ranks hold 1 and 3 examples, 2 on average, and DDP averages the gradients of the two."""
    ours, theirs = step([[5.0]], torch.tensor(2.0)), step([[1.0, 2.0, 4.0]], torch.tensor(2.0))
    assert (ours + theirs) / 2 == pytest.approx((5 + 1 + 2 + 4) / 4)


def test_a_step_without_examples_has_the_gradient_0():
    assert step([[], []]) == 0.0


def test_a_step_that_was_broken_off_is_forgotten():
    mean, weight = StepMean(), torch.nn.Parameter(torch.tensor(1.0))
    trainer = trainer_of(weight, 2)
    mean.weigh(trainer, weight, 5)
    mean.reset()
    for value, examples in ((4.0, 2), (7.0, 1)):
        (mean.weigh(trainer, weight * value, examples) / 2).backward()
    mean.normalise(trainer)
    assert weight.grad.item() == pytest.approx((2 * 4.0 + 7.0) / 3)


class Gradients(Callback):
    """Keeps what a callback sees before each optimizer step."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append({name: param.grad.clone() for name, param in pl_module.policy.named_parameters()})


def fit(path, rows, loss, callback=None, **options):
    torch.manual_seed(0)
    model = PreferenceModule(
        PretrainedPolicy(path), FrozenReference(), loss, lambda params: torch.optim.SGD(params, lr=0.1)
    )
    data = PreferenceDataModule(path, rows, batch_size=2, shuffle=False, mismatched=loss.mismatched)
    options = {**QUIET, "enable_checkpointing": False, "max_epochs": 1, **options}
    Trainer(callbacks=callback, **options).fit(model, data)
    return model


def test_a_callback_sees_the_gradient_of_the_mean(llama_dir, write_rows, rows):
    """Two batches of 2 and 1 pairs against one of all three."""
    seen = {}
    for accumulate, size in ((2, 2), (1, 3)):
        torch.manual_seed(0)
        model = PreferenceModule(PretrainedPolicy(llama_dir), FrozenReference(), DPO(beta=0.5))
        data = PreferenceDataModule(llama_dir, Rows(write_rows(rows[:3])), batch_size=size, shuffle=False)
        gradients = Gradients()
        options = {**QUIET, "enable_checkpointing": False, "max_epochs": 1, "accumulate_grad_batches": accumulate}
        Trainer(callbacks=gradients, **options).fit(model, data)
        (seen[accumulate],) = gradients.seen
    for name, gradient in seen[1].items():
        torch.testing.assert_close(seen[2][name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_with_nothing_to_learn_from_leave_the_weights_finite_and_as_they_are(
    llama_dir, write_rows, rows, accumulate
):
    """SFT of rejected responses alone: no step has an example."""
    unpaired = [{"prompt": row["prompt"], "completion": row["rejected"], "label": False} for row in rows[:6]]
    model = fit(llama_dir, Rows(write_rows(unpaired)), SFT(), accumulate_grad_batches=accumulate)
    start = dict(PretrainedPolicy(llama_dir).load().named_parameters())
    for name, param in model.policy.named_parameters():
        assert torch.equal(param, start[name]), name


def test_pairs_and_unpaired_rows_in_one_batch(llama_dir, write_rows, rows):
    """KTO takes a pair and an unpaired row as three examples, each once."""
    pair = rows[0]
    mixed = [{"prompt": rows[1]["prompt"], "completion": rows[1]["chosen"], "label": True}, pair]
    gradients = {}
    for name, given in {"mixed": mixed, "unpaired": [mixed[0], *unpaired(pair)]}.items():
        seen = Gradients()
        torch.manual_seed(0)
        model = PreferenceModule(PretrainedPolicy(llama_dir), FrozenReference(), KTO(beta=0.5))
        data = PreferenceDataModule(llama_dir, Rows(write_rows(given)), batch_size=len(given), shuffle=False)
        data.mismatched = True
        options = {**QUIET, "enable_checkpointing": False, "max_epochs": 1}
        Trainer(callbacks=seen, **options).fit(model, data)
        (gradients[name],) = seen.seen
    for name, gradient in gradients["unpaired"].items():
        torch.testing.assert_close(gradients["mixed"][name], gradient, rtol=1e-4, atol=1e-6)


def unpaired(pair):
    return [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for side in ("chosen", "rejected")
    ]
