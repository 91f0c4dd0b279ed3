import math
from dataclasses import dataclass

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import ReduceLROnPlateau
from lightning.pytorch.loggers import CSVLogger

from lit_tr import HardReferenceUpdate, PreferenceDataModule, PreferenceModule, SoftReferenceUpdate
from lit_tr.embedded import SyntheticPairs
from lit_tr.losses import DPO, KTO, TDPO2, Loss, SimPO
from lit_tr.policy import PretrainedPolicy
from lit_tr.reference import CopyReference, FrozenReference, WindowReference

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


@dataclass(frozen=True)
class LastToken(Loss):
    """DPO on the log-prob of the last token of each response alone: it reads scores of tokens."""

    token_level = True
    beta: float = 0.5

    def rewards(self, scores):
        ends = scores.tokens.cumsum(0) - 1
        return self.beta * (scores.policy_tokens - scores.reference_tokens)[ends]

    def __call__(self, chosen, rejected, statistics=None):
        return -torch.nn.functional.logsigmoid(self.rewards(chosen) - self.rewards(rejected))


class Recorded(PreferenceModule):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.__dict__.setdefault("losses", []).append(loss.item())
        return loss


def module(path, loss, reference=None, **options):
    torch.manual_seed(0)
    options = {"log_initial": False, "optimizer": lambda params: torch.optim.SGD(params, lr=0.05), **options}
    return Recorded(PretrainedPolicy(path), reference or FrozenReference(), loss, **options)


def fit(model, path, callbacks=(), rows=6, batch_size=2, **options):
    options = {**QUIET, "max_steps": 3, "enable_checkpointing": False, **options}
    data = PreferenceDataModule(
        path, SyntheticPairs(rows), val=SyntheticPairs(4, seed=8), batch_size=batch_size, shuffle=False
    )
    data.mismatched = model.loss.mismatched
    Trainer(callbacks=list(callbacks), **options).fit(model, data)
    return model, data


def test_a_loss_of_tokens_by_hand(llama_dir):
    """Against the logits of the models themselves, one row at a time."""
    model, data = fit(module(llama_dir, LastToken()), llama_dir, max_steps=2)
    assert model.losses[0] == pytest.approx(math.log(2))
    (values,) = Trainer(**QUIET, enable_checkpointing=False).predict(
        model, PreferenceDataModule(llama_dir, SyntheticPairs(1), val=SyntheticPairs(1), batch_size=1)
    )
    rows = PreferenceDataModule(llama_dir, SyntheticPairs(1))
    rows.setup("fit")
    (example,) = rows.examples["train"]
    rewards = []
    for response in (example.chosen, example.rejected):
        ids = torch.tensor([example.prompt + response])
        last = [net(ids).logits[0, -2].log_softmax(-1)[response[-1]] for net in (model.policy, model.reference.model)]
        rewards.append(0.5 * (last[0] - last[1]).item())
    assert values["rewards/chosen"].item() == pytest.approx(rewards[0], abs=1e-4)
    assert values["rewards/margins"].item() == pytest.approx(rewards[0] - rewards[1], abs=1e-4)


def test_a_window_keeps_the_scores_of_tokens(llama_dir):
    window, _ = fit(module(llama_dir, LastToken(), WindowReference()), llama_dir, [HardReferenceUpdate(2)], max_steps=7)
    copy, _ = fit(module(llama_dir, LastToken(), CopyReference()), llama_dir, [HardReferenceUpdate(2)], max_steps=7)
    assert window.losses == copy.losses


def test_divergences_are_trained_on_and_logged(llama_dir):
    model, _ = fit(module(llama_dir, TDPO2(beta=0.5), CopyReference()), llama_dir, [SoftReferenceUpdate(0.5, 2)])
    metrics = model.trainer.callback_metrics
    assert model.losses[0] == pytest.approx(math.log(2))
    assert metrics["val/kl/chosen"] > 0.001
    assert metrics["val/kl/rejected"] > 0.001
    assert "val/initial/kl/chosen" not in metrics


def test_divergences_take_one_pass_of_each_model(llama_dir):
    model, _ = fit(module(llama_dir, TDPO2(), CopyReference()), llama_dir, max_steps=1)
    passes = []
    for net in (model.policy, model.reference.model):
        net.model.register_forward_hook(lambda layers, args, output, net=net: passes.append(net))
    fit(model, llama_dir, max_steps=1, limit_val_batches=0)
    assert passes == [model.reference.model, model.policy]


def test_logged_rewards_are_those_of_the_loss(llama_dir):
    model, _ = fit(module(llama_dir, SimPO(beta=2.0, gamma=0.0)), llama_dir)
    metrics = model.trainer.callback_metrics
    loss = -math.log(1 / (1 + math.exp(-metrics["val/rewards/margins"])))
    assert metrics["val/loss"] == pytest.approx(loss, abs=0.1)  # of the mean margin
    assert "val/log_ratios" not in metrics


class Metrics(Callback):
    """Keeps the values of each batch, and what was logged after each step."""

    def __init__(self):
        self.logged = []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.logged.append({k: v.item() for k, v in trainer.callback_metrics.items() if k.startswith("train/l")})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_means_are_those_of_the_interval(llama_dir, tmp_path, accumulate):
    """Batches of 2, 2, 2 and 1 pairs: a mean over 7 pairs, and not one of batches or of the last batch."""
    model, _ = fit(
        module(llama_dir, DPO(beta=0.5)),
        llama_dir,
        rows=7,
        max_steps=8 // accumulate,
        accumulate_grad_batches=accumulate,
        logger=CSVLogger(tmp_path),
        log_every_n_steps=4 // accumulate,
    )
    text = next(tmp_path.rglob("metrics.csv")).read_text().splitlines()
    rows = [dict(zip(text[0].split(","), line.split(","), strict=True)) for line in text[1:]]
    logged = [(int(row["step"]), float(row["train/loss"])) for row in rows if row["train/loss"]]
    sizes = [2, 2, 2, 1]
    means = [sum(size * loss for size, loss in zip(sizes, model.losses[i : i + 4], strict=True)) / 7 for i in (0, 4)]
    assert [step for step, _ in logged] == [4 // accumulate - 1, 8 // accumulate - 1]
    assert [loss for _, loss in logged] == pytest.approx(means, rel=1e-5)


def test_an_optimizer_gets_a_list_of_parameters(llama_dir):
    def two_groups(params):
        return torch.optim.SGD([{"params": params}, {"params": [p for p in params if p.ndim == 0]}], lr=0.1)

    def counted(params):
        groups = [p for p in params if p.ndim > 1], [p for p in params if p.ndim == 1]
        sizes.extend(map(len, groups))
        return torch.optim.SGD([{"params": group} for group in groups], lr=0.1)

    sizes = []
    fit(module(llama_dir, DPO(), optimizer=counted), llama_dir)
    assert all(sizes)
    fit(module(llama_dir, DPO(), optimizer=two_groups), llama_dir)


def test_a_schedule_that_watches_a_metric(llama_dir):
    def plateau(optimizer):
        return ReduceLROnPlateau(optimizer, monitor="val/loss", factor=0.5, patience=0, threshold=10.0)

    model, _ = fit(module(llama_dir, DPO(), lr_scheduler=plateau), llama_dir, max_steps=-1, max_epochs=3)
    assert model.trainer.optimizers[0].param_groups[0]["lr"] == 0.05 * 0.125  # three epochs


def test_kto_and_its_baseline_over_a_batch(llama_dir):
    model, _ = fit(module(llama_dir, KTO(beta=0.5)), llama_dir)
    assert model.losses[0] == pytest.approx(0.5)
    assert model.scorer.statistics.shape == ()


def test_the_proof_of_packs_knows_the_longest_row(llama_dir, monkeypatch):
    seen = []
    monkeypatch.setattr("lit_tr.scoring.why_not_packed", lambda policy, longest: seen.append(longest))
    fit(module(llama_dir, DPO()), llama_dir)
    assert seen == [1024]  # data.max_length
