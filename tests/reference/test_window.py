import json
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint, Timer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.utils.data import DataLoader, IterableDataset
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from lit_tr import (
    AdaptiveReferenceUpdate,
    HardReferenceUpdate,
    PreferenceDataModule,
    PreferenceModule,
    SoftReferenceUpdate,
)
from lit_tr.data import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.embedded import SyntheticPairs
from lit_tr.errors import UserError
from lit_tr.losses import DPO, KTO
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.reference import CopyReference, WindowReference

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


def run(path, reference, steps=16, loss=None, callbacks=(), ckpt_path=None, policy=None, trainer=None, tau=TAU, **data):
    """Fit, with validation after batches 7, 14 and 21 of each epoch: in the middle of windows, and of steps."""
    model = module(path, reference, loss, **(policy or {}))
    options = {"batch_size": 2, "mismatched": bool(loss), "seed": 3, **data}
    rows = PreferenceDataModule(path, SyntheticPairs(PAIRS), val=SyntheticPairs(5, seed=8), **options)
    options = {**QUIET, "accumulate_grad_batches": ACCUMULATE, "val_check_interval": 7, **(trainer or {})}
    update = HardReferenceUpdate(every_n_steps=tau)
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    trainer = Trainer(max_steps=steps, callbacks=[update, *callbacks], enable_checkpointing=saves, **options)
    trainer.fit(model, rows, ckpt_path=ckpt_path)
    return model


def assert_alike(ours, theirs):
    """The same losses, validations and weights, bit for bit."""
    assert ours.losses == theirs.losses
    assert ours.figures == theirs.figures
    assert all(map(torch.equal, ours.policy.parameters(), theirs.policy.parameters()))


class Stop(Timer):
    """Ends a run in the middle of a window, with a validation that no interval tells."""

    def __init__(self):
        super().__init__(duration={"days": 1})

    def on_train_batch_end(self, trainer, *args, **kwargs):
        trainer.should_stop = trainer.global_step == 13


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"num_workers": 1}, marks=pytest.mark.slow),
        {"batch_size": None, "max_tokens": 140},
        {"packed": False},
        {"loss": KTO()},
        {"policy": {"dtype": "bfloat16"}},
        {"trainer": {"precision": "bf16-mixed"}},
        {"trainer": {"precision": "bf16-true"}},
        {"trainer": {"limit_train_batches": 11, "limit_val_batches": 2}},
        {"callbacks": [Stop()]},
        {"trainer": {"check_val_every_n_epoch": None, "val_check_interval": 10}},
        {"trainer": {"check_val_every_n_epoch": 2, "val_check_interval": 1.0}},
    ],
    ids=lambda options: json.dumps(options, default=lambda value: type(value).__name__),
)
def test_hard_updates_with_and_without_a_second_model_are_alike(llama_dir, options):
    """Three windows of 5 steps and the start of a fourth, over an epoch end that cuts the accumulation short."""
    window, copy = run(llama_dir, WindowReference(), **options), run(llama_dir, CopyReference(), **options)
    assert_alike(window, copy)
    assert copy.figures
    assert any(means["val/log_ratios"] != 0 for _, means in copy.figures)
    assert not window.reference.state_dict()


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_dropout_draws_the_same_and_does_not_touch_the_reference(tmp_path, llama_dir, tokenizer, workers):
    config = json.loads((Path(llama_dir) / "config.json").read_text())
    LlamaForCausalLM(LlamaConfig(**{**config, "attention_dropout": 0.3})).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    options = {"steps": 7, "packed": False, "policy": {"attention": "sdpa"}, "num_workers": workers}
    window = run(str(tmp_path), WindowReference(), **options)
    assert_alike(window, run(str(tmp_path), CopyReference(), **options))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_resumed_run_goes_on_as_the_uninterrupted_one(llama_dir, tmp_path, workers):
    """Behind steps 3 and 7 in the middle of windows and epochs, 5 between windows, 8 between epochs."""
    kept = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=1, filename="{step}")
    whole = run(llama_dir, WindowReference(), callbacks=[kept], num_workers=workers)
    for step in [3, 5, 7, 8] if workers == 0 else [7, 8]:
        path = tmp_path / f"step={step}.ckpt"
        resumed = run(llama_dir, WindowReference(), ckpt_path=path, num_workers=workers)
        assert resumed.losses == whole.losses[-len(resumed.losses) :]
        assert len(resumed.losses) == len(whole.losses) - (step // 8 * 23 + step % 8 * ACCUMULATE)
        assert resumed.figures == whole.figures[-len(resumed.figures) :]
        assert len(resumed.figures) >= 3
        assert all(map(torch.equal, resumed.policy.parameters(), whole.policy.parameters()))
        assert_equal_windows(resumed.reference.rank_state(), whole.reference.rank_state())


class Interrupt(Callback):
    """Ctrl-C after a step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step and not trainer.fit_loop._should_accumulate():
            raise KeyboardInterrupt


@pytest.mark.parametrize("step", [5, 7, pytest.param(8, marks=pytest.mark.slow)])
def test_what_ctrl_c_leaves_goes_on(llama_dir, tmp_path, step):
    saved = ModelCheckpoint(tmp_path, save_on_exception=True, every_n_train_steps=100)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(llama_dir, WindowReference(), callbacks=[Interrupt(step), saved])
    (path,) = tmp_path.glob("*.ckpt")
    resumed = run(llama_dir, WindowReference(), steps=12, ckpt_path=path)
    copy = run(llama_dir, CopyReference(), steps=12)
    assert resumed.losses == copy.losses[-len(resumed.losses) :]
    assert all(map(torch.equal, resumed.policy.parameters(), copy.policy.parameters()))


class SaveAt(Callback):
    """Saves after a batch of the run, in the middle of an optimizer step; gradients are in no checkpoint."""

    def __init__(self, batches, path):
        self.batches, self.path = batches, path

    def on_train_batch_end(self, trainer, *args):
        if trainer.fit_loop.total_batch_idx + 1 == self.batches:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("reference", [WindowReference, CopyReference])
def test_what_was_saved_in_the_middle_of_a_step_goes_on_before_it(llama_dir, tmp_path, reference):
    """Batch 19 is the first of step 7: it comes again, for its gradient is in no checkpoint."""
    path = tmp_path / "within.ckpt"
    whole = run(llama_dir, reference(), steps=12, callbacks=[SaveAt(19, path)])
    resumed = run(llama_dir, reference(), steps=12, ckpt_path=path)
    assert resumed.losses == whole.losses[18:]
    assert resumed.figures == whole.figures[-len(resumed.figures) :]
    assert all(map(torch.equal, resumed.policy.parameters(), whole.policy.parameters()))


@pytest.fixture(scope="module")
def in_window(llama_dir, tmp_path_factory):
    """Checkpoint of step 7, in the window of steps 6 to 10."""
    folder = tmp_path_factory.mktemp("checkpoints")
    run(llama_dir, WindowReference(), steps=7, callbacks=[ModelCheckpoint(folder, save_last=True)])
    return folder / "last.ckpt"


def test_a_checkpoint_holds_log_probs_and_no_second_model(in_window):
    checkpoint = torch.load(in_window, weights_only=True)
    assert {key.split(".")[0] for key in checkpoint["state_dict"]} == {"policy"}
    window = checkpoint["lit_tr_ranks"][0]["reference"]
    # steps 6 to 8 hold 8 batches, 9 and 10 6 of the next epoch; validation has 3
    assert [len(lengths) for lengths, _ in window["train"]] == [4] * 14
    assert [len(lengths) for lengths, _ in window["validation"]] == [4, 4, 2]
    assert all(len(log_probs) == lengths.sum() for lengths, log_probs in window["train"] + window["validation"])
    assert window["until"] == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tau": 4}, "has scored the batches up to step 10, and the next update follows step 8"),
        ({"batch_size": 3}, "these batches are not those that were scored before the checkpoint"),
        ({"seed": 4}, "these batches are not those that were scored before the checkpoint"),
    ],
)
def test_a_resume_that_cannot_go_on_is_named(llama_dir, in_window, options, message):
    with pytest.raises(UserError, match=message):
        run(llama_dir, WindowReference(), ckpt_path=in_window, **options)


def test_validation_may_come_at_other_times_after_a_resume(llama_dir, in_window):
    trainer = {"val_check_interval": 4}
    window = run(llama_dir, WindowReference(), steps=12, ckpt_path=in_window, trainer=trainer)
    copy = run(llama_dir, CopyReference(), steps=12)
    assert window.losses == copy.losses[-len(window.losses) :]
    assert [step for step, _ in window.figures] == [9, 10, 12]  # after batches 4, 8, 12 of the second epoch


def assert_equal_windows(ours, theirs):
    assert ours["until"] == theirs["until"]
    for name in ("train", "validation"):
        for one, other in zip(ours[name], theirs[name], strict=True):
            assert all(map(torch.equal, one, other))


@pytest.mark.parametrize(("step", "message"), [(5, None), (7, "WindowReference holds no weights")])
def test_a_checkpoint_of_two_ranks_is_loaded_on_one(llama_dir, tmp_path, step, message):
    """At an update it is evaluated and goes on as any other; within a window it says why it cannot."""
    saved = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    run(llama_dir, WindowReference(), steps=step, callbacks=[saved])
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    checkpoint["lit_tr_ranks"] *= 2
    torch.save(checkpoint, tmp_path / "two.ckpt")
    with pytest.raises(UserError, match=message) if message else nullcontext():
        assert evaluate(llama_dir, "test", tmp_path / "two.ckpt")[0]["test/log_ratios"] == 0
    stops = pytest.raises(UserError, match="saved on 2 ranks in the middle of a window")
    with stops if message else nullcontext():
        run(llama_dir, WindowReference(), ckpt_path=tmp_path / "two.ckpt")


def evaluate(path, verb, ckpt_path=None):
    rows = PreferenceDataModule(path, SyntheticPairs(4), val=SyntheticPairs(5, seed=8), batch_size=2)
    rows.sources["test"] = SyntheticPairs(4, seed=9)
    return getattr(Trainer(**QUIET, enable_checkpointing=False), verb)(
        module(path, WindowReference()), rows, ckpt_path=ckpt_path
    )


@pytest.mark.parametrize("verb", ["test", "predict"])
def test_evaluation_inside_a_window_is_refused(llama_dir, in_window, verb):
    with pytest.raises(UserError, match="To test or predict"):
        evaluate(llama_dir, verb, in_window)


def test_evaluation_before_training_is_against_the_policy_itself(llama_dir):
    assert evaluate(llama_dir, "test")[0]["test/loss"] == pytest.approx(0.693147, abs=1e-6)


def loader(rows, tokenizer, kind=StatefulDataLoader):
    class Unsized(IterableDataset):
        def __iter__(self):
            yield from examples

    examples = [TokenizedExample([5, 17], [300, 41, i], [8, 0]) for i in range(8)]
    if kind is IterableDataset:
        return StatefulDataLoader(Unsized(), batch_size=2, collate_fn=Collator())
    return kind(examples, batch_size=2, collate_fn=Collator())


HARD = HardReferenceUpdate
SCALED = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))


@pytest.mark.parametrize(
    ("callbacks", "options", "message"),
    [
        ([], {}, "not with no update of the reference: else take CopyReference"),
        ([SoftReferenceUpdate()], {}, "only hard updates of all layers: take HardReferenceUpdate without layers"),
        ([HARD(2), SoftReferenceUpdate()], {}, "WindowReference, as it is configured, takes only hard updates of all"),
        ([AdaptiveReferenceUpdate(0.1)], {}, "goes with one HardReferenceUpdate, not with AdaptiveReferenceUpdate"),
        ([HARD(2, layers={"mlp": 0.0})], {}, "take HardReferenceUpdate without layers, or another reference"),
        ([HARD(2)], {"policy": {"lora": LoRA(r=4)}}, "whose second adapter costs next to nothing"),
        ([HARD(2), GradientAccumulationScheduler({0: 2})], {}, "not go with GradientAccumulationScheduler"),
        ([HARD(2)], {"reload_dataloaders_every_n_epochs": 1}, "not go with reload_dataloaders_every_n_epochs"),
        ([HARD(2)], {"plugins": SCALED}, "take bf16-mixed"),
    ],
)
def test_what_does_not_go_together_is_named_before_training(llama_dir, rows, tokenizer, callbacks, options, message):
    options = dict(options)
    model = module(llama_dir, WindowReference(), **options.pop("policy", {}))
    rows = loader(rows, tokenizer, options.pop("kind", StatefulDataLoader))
    trainer = Trainer(max_steps=2, callbacks=callbacks, enable_checkpointing=False, **QUIET, **options)
    with pytest.raises(UserError, match=message):
        trainer.fit(model, rows)
    assert trainer.global_step == 0


@pytest.mark.parametrize("kind", [DataLoader, IterableDataset])
def test_loaders_without_a_state_or_a_length(llama_dir, rows, tokenizer, kind):
    losses = []
    for reference in (WindowReference(), CopyReference()):
        model = module(llama_dir, reference)
        options = {**QUIET, "enable_checkpointing": False, "accumulate_grad_batches": 3}  # 4 batches an epoch
        Trainer(max_steps=9, callbacks=[HARD(3)], **options).fit(model, loader(rows, tokenizer, kind))
        losses.append(model.losses)
    assert losses[0] == losses[1]
    assert len(losses[0]) == 19  # steps of 3 and 1 batches


def test_a_loader_of_another_project_with_a_random_order(llama_dir, rows, tokenizer):
    losses = []
    for reference in (WindowReference(), CopyReference()):
        model = module(llama_dir, reference)
        examples = loader(rows, tokenizer).dataset
        shuffled = StatefulDataLoader(examples, 2, shuffle=True, collate_fn=Collator())
        Trainer(max_steps=9, callbacks=[HARD(3)], enable_checkpointing=False, **QUIET).fit(model, shuffled)
        losses.append(model.losses)
    assert losses[0] == losses[1]


def test_the_initial_policy_is_not_held_unless_asked_for(llama_dir):
    assert module(llama_dir, WindowReference(), log_initial=None).initial is None
    assert module(llama_dir, WindowReference(), log_initial=True).initial is not None
    assert module(llama_dir, CopyReference(), log_initial=None).initial is not None


def test_a_window_holds_batches_without_the_masks_that_were_made_of_them(llama_dir):
    class Held(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.own = len(batch.packing._masks)
            self.window = [len(one.packing._masks) for one in batch.drawn.batches]

    held = Held()
    model = run(llama_dir, WindowReference(), steps=4, callbacks=[held])
    assert held.own > 0
    assert held.window == [0] * TAU * ACCUMULATE
    assert all(not batch.packing._masks for batch in model.reference._validation.batches)


def test_a_soft_update_is_refused():
    with pytest.raises(UserError, match="only hard updates of all layers"):
        WindowReference().update(torch.nn.Linear(1, 1), 0.5)
