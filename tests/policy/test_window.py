import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import LlamaConfig, LlamaForCausalLM

from lit_tr import HardReferenceUpdate, PreferenceDataModule, PreferenceModule
from lit_tr.data import Collator, SyntheticPairs
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.errors import UserError
from lit_tr.losses import DPO, KTO
from lit_tr.policy import CopyReference, LoRA, PretrainedPolicy, WindowReference
from lit_tr.policy.window import fingerprint

TAU, ACCUMULATE, PAIRS = 5, 3, 46  # batches of 2: 23 an epoch, 8 steps, the last one of 2 batches
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Recorded(PreferenceModule):
    """Keeps the loss of each batch and the figures of each validation, by the step they came after."""

    def setup(self, stage):
        super().setup(stage)
        self.losses, self.figures = [], []

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.losses.append(loss.item())
        return loss

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        if not self.trainer.sanity_checking:
            means = {name: value.item() for name, value in self.trainer.callback_metrics.items() if "val/" in name}
            self.figures.append((self.global_step, means))


def module(path, reference, loss=None, log_initial=False, **policy):
    torch.manual_seed(0)
    return Recorded(
        PretrainedPolicy(path, **policy),
        reference,
        loss or DPO(beta=0.5),
        optimizer=lambda params: torch.optim.AdamW(params, lr=0.003),
        log_initial=log_initial,
    )


def run(path, reference, steps=20, loss=None, callbacks=(), ckpt_path=None, policy=None, trainer=None, **data):
    """Fit, with validation behind batches 7, 14 and 21 of each epoch: in the middle of windows, and of steps."""
    model = module(path, reference, loss, **(policy or {}))
    options = {"batch_size": 2, "mismatched": bool(loss), "seed": 3, **data}
    rows = PreferenceDataModule(path, SyntheticPairs(PAIRS), val=SyntheticPairs(5, seed=8), **options)
    options = {**QUIET, "accumulate_grad_batches": ACCUMULATE, "val_check_interval": 7, **(trainer or {})}
    update = HardReferenceUpdate(every_n_steps=TAU)
    trainer = Trainer(max_steps=steps, callbacks=[update, *callbacks], enable_checkpointing=bool(callbacks), **options)
    trainer.fit(model, rows, ckpt_path=ckpt_path)
    return model


def assert_alike(ours, theirs):
    """The same losses, validations and weights, bit for bit."""
    assert ours.losses == theirs.losses
    assert ours.figures == theirs.figures
    assert all(map(torch.equal, ours.policy.parameters(), theirs.policy.parameters()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_workers": 1},
        {"batch_size": None, "max_tokens": 140},
        {"packed": False},
        {"loss": KTO()},
        {"policy": {"dtype": "bfloat16"}},
        {"trainer": {"precision": "bf16-mixed"}},
        {"trainer": {"limit_train_batches": 11, "limit_val_batches": 2}},
        {"trainer": {"check_val_every_n_epoch": None, "val_check_interval": 10}},
        {"trainer": {"check_val_every_n_epoch": 2, "val_check_interval": 1.0}},
    ],
    ids=lambda options: "-".join(options) or "plain",
)
def test_hard_updates_with_and_without_a_second_model_are_alike(llama_dir, options):
    """Four windows of 5 steps, over two epoch ends that cut the accumulation short."""
    window, copy = run(llama_dir, WindowReference(), **options), run(llama_dir, CopyReference(), **options)
    assert_alike(window, copy)
    assert copy.figures
    assert any(means["val/log_ratio"] != 0 for _, means in copy.figures)
    assert not list(window.reference.parameters())


@pytest.mark.parametrize("workers", [0, 1])
def test_dropout_draws_the_same_and_does_not_touch_the_reference(tmp_path, llama_dir, tokenizer, workers):
    config = json.loads((Path(llama_dir) / "config.json").read_text())
    LlamaForCausalLM(LlamaConfig(**{**config, "attention_dropout": 0.3})).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    options = {"steps": 7, "packed": False, "policy": {"attention": "sdpa"}, "num_workers": workers}
    window = run(str(tmp_path), WindowReference(), **options)
    assert_alike(window, run(str(tmp_path), CopyReference(), **options))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_goes_on_as_the_uninterrupted_one(llama_dir, tmp_path, workers):
    """Behind steps 3 and 7 in the middle of windows and epochs, 5 between windows, 8 and 16 between epochs."""
    kept = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=1, filename="{step}")
    whole = run(llama_dir, WindowReference(), callbacks=[kept], num_workers=workers)
    steps = [3, 5, 7, 8, 16] if workers == 0 else [7, 8]
    for step in steps:
        path = tmp_path / f"step={step}.ckpt"
        saved = [ModelCheckpoint(tmp_path / "resumed", save_top_k=0)]
        resumed = run(llama_dir, WindowReference(), callbacks=saved, ckpt_path=path, num_workers=workers)
        assert resumed.losses == whole.losses[-len(resumed.losses) :]
        assert len(resumed.losses) == len(whole.losses) - (step // 8 * 23 + step % 8 * ACCUMULATE)
        assert resumed.figures == [figures for figures in whole.figures if figures[0] >= step][-len(resumed.figures) :]
        assert all(map(torch.equal, resumed.policy.parameters(), whole.policy.parameters()))
        assert resumed.reference.scored.keys() == whole.reference.scored.keys()


class Interrupt(Callback):
    """Ctrl-C behind a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step and not trainer.fit_loop._should_accumulate():
            raise KeyboardInterrupt


@pytest.mark.parametrize("step", [5, 7, 8])
def test_what_ctrl_c_leaves_goes_on(llama_dir, tmp_path, step):
    saved = ModelCheckpoint(tmp_path, save_on_exception=True, every_n_train_steps=100)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(llama_dir, WindowReference(), callbacks=[Interrupt(step), saved])
    (path,) = tmp_path.glob("*.ckpt")
    saved = [ModelCheckpoint(tmp_path / "resumed", save_top_k=0)]
    resumed = run(llama_dir, WindowReference(), callbacks=saved, ckpt_path=path)
    copy = run(llama_dir, CopyReference())
    assert resumed.losses == copy.losses[-len(resumed.losses) :]
    assert all(map(torch.equal, resumed.policy.parameters(), copy.policy.parameters()))
