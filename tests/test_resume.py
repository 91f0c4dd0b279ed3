"""A run that is stopped anywhere, twice, goes on as the one that was not: bit for bit, with all steps trained."""

import random
import time

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.strategies import ModelParallelStrategy
from transformers import AutoTokenizer, LlamaConfig, MistralConfig, MistralForCausalLM

from lit_tr import (
    AdaptiveReferenceUpdate,
    HardReferenceUpdate,
    PreferenceDataModule,
    PreferenceModule,
    SoftReferenceUpdate,
)
from lit_tr.checkpoints import is_complete
from lit_tr.embedded import SyntheticPairs
from lit_tr.errors import UserError
from lit_tr.losses import DPO, KTO
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.reference import AdapterReference, CopyReference, FrozenReference, WindowReference
from tests import processes

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
LORA = {"lora": LoRA(r=4, dropout=0.1)}
KINDS = {
    "copy soft": (CopyReference, {}, lambda: SoftReferenceUpdate(every_n_steps=2)),
    "copy hard": (CopyReference, {}, lambda: HardReferenceUpdate(every_n_steps=3)),
    "copy adaptive": (CopyReference, {}, lambda: AdaptiveReferenceUpdate(max_kl=0.05, every_n_steps=1)),
    "copy bfloat16": (CopyReference, {"dtype": "bfloat16"}, lambda: SoftReferenceUpdate(every_n_steps=2)),
    "adapter soft": (AdapterReference, LORA, lambda: SoftReferenceUpdate(every_n_steps=2)),
    "adapter nf4": (AdapterReference, {**LORA, "quantize": "nf4"}, lambda: SoftReferenceUpdate(every_n_steps=2)),
    "window": (WindowReference, {}, lambda: HardReferenceUpdate(every_n_steps=3)),
    "frozen": (FrozenReference, {}, None),
}


class Stop(Exception):
    """What a callback stops a run with."""


class StopAt(Callback):
    """Stops a run at the n-th of the moments at which something may happen to it."""

    def __init__(self, count):
        self.left = count

    def moment(self, *args):
        self.left -= 1
        if self.left == 0:
            raise Stop

    on_train_batch_start = on_after_backward = on_train_batch_end = on_validation_batch_end = moment
    on_validation_end = on_train_epoch_end = on_train_epoch_start = moment


class Recorded(PreferenceModule):
    """Keeps the loss of each batch that was trained on, with the number of the step that it is a part of."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.__dict__.setdefault("losses", []).append((self.global_step, loss.item()))
        return loss

    def on_validation_epoch_end(self):
        super().on_validation_epoch_end()
        if not self.trainer.sanity_checking:
            figures = {name: value.item() for name, value in self.trainer.callback_metrics.items() if "val/" in name}
            self.__dict__.setdefault("figures", []).append((self.global_step, figures))


def module(path, kind, loss=None):
    reference, policy, _ = KINDS[kind]
    torch.manual_seed(0)
    optimizer = lambda params: torch.optim.AdamW(params, lr=0.003)  # noqa: E731
    return Recorded(PretrainedPolicy(path, **policy), reference(), loss or DPO(beta=0.5), optimizer, log_initial=False)


def run(path, kind, options, folder=None, stop=None, ckpt_path=None, loss=None, callbacks=()):
    """Fit on 14 pairs: 7 batches an epoch; return the module, and its validation figures by step."""
    model, update = module(path, kind, loss), KINDS[kind][2]
    callbacks = [*callbacks, *([update()] if update else []), *([StopAt(stop)] if stop else [])]
    if folder:
        callbacks.append(ModelCheckpoint(folder, save_last=True, every_n_train_steps=1, save_on_exception=True))
    rows = PreferenceDataModule(path, SyntheticPairs(14), val=SyntheticPairs(3, seed=8), batch_size=2, seed=3)
    rows.mismatched = model.loss.mismatched
    trainer = Trainer(callbacks=callbacks, enable_checkpointing=bool(folder), **{**QUIET, **options})
    try:
        trainer.fit(model, rows, ckpt_path=ckpt_path)
    except Stop:
        assert stop
    return model


def newest(folder):
    return max(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime, default=None)


def assert_went_on(resumed, whole):
    losses = getattr(resumed, "losses", [])  # none where all had been trained
    assert losses == whole.losses[len(whole.losses) - len(losses) :]
    if seen := getattr(resumed, "figures", []):
        assert seen == whole.figures[-len(seen) :]
    assert resumed.global_step == whole.global_step
    if losses:  # Lightning counts the epoch that max_steps ends in when it leaves it
        assert resumed.trainer.current_epoch == whole.trainer.current_epoch
    for (name, one), other in zip(resumed.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def options_of(draw):
    """Options of a Trainer, any of which may go with any other."""
    options = {"accumulate_grad_batches": draw.choice([1, 2, 3])}
    options |= draw.choice([{"max_steps": 9, "max_epochs": -1}, {"max_epochs": 3}, {"max_epochs": 2, "max_steps": 11}])
    if draw.random() < 0.4:
        options["limit_train_batches"] = draw.choice([3, 5])
    options |= draw.choice([{}, {"val_check_interval": 2}, {"val_check_interval": 3}, {"limit_val_batches": 0}])
    if options.get("limit_train_batches") == 3:
        options.pop("val_check_interval", None)
    if draw.random() < 0.3:
        options |= {"check_val_every_n_epoch": None, "val_check_interval": 4}
    return options


def fuzz(path, folder, kind, seed):
    draw = random.Random(f"{kind} {seed}")
    options = options_of(draw)
    whole = run(path, kind, options)
    ckpt_path = None
    for attempt in ("first", "second"):
        run(path, kind, options, folder / attempt, draw.randint(2, 40), ckpt_path)
        ckpt_path = newest(folder / attempt) or ckpt_path
    resumed = run(path, kind, options, ckpt_path=ckpt_path)
    assert_went_on(resumed, whole)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["copy soft", "window", "frozen"])
def test_two_stops_anywhere_change_nothing(llama_dir, tmp_path, kind, seed):
    fuzz(llama_dir, tmp_path, kind, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 12))
@pytest.mark.parametrize("kind", KINDS)
def test_two_stops_anywhere_change_nothing_whatever_the_reference(llama_dir, tmp_path, kind, seed):
    fuzz(llama_dir, tmp_path, kind, seed)


@pytest.mark.parametrize("options", [{"max_epochs": 3}, {"max_steps": 12, "max_epochs": -1}])
@pytest.mark.parametrize("epochs", [1, 2])
def test_a_finished_run_is_continued_with_more_epochs(llama_dir, tmp_path, options, epochs):
    """7 batches an epoch, in steps of 2, 2, 2 and 1."""
    whole = run(llama_dir, "copy soft", {"accumulate_grad_batches": 2, **options})
    run(llama_dir, "copy soft", {"accumulate_grad_batches": 2, "max_epochs": epochs}, tmp_path)
    resumed = run(llama_dir, "copy soft", {"accumulate_grad_batches": 2, **options}, ckpt_path=tmp_path / "last.ckpt")
    assert len(resumed.losses) == 7 * (3 - epochs)
    assert_went_on(resumed, whole)


def test_a_checkpoint_that_is_written_after_training_goes_on(llama_dir, tmp_path):
    whole = run(llama_dir, "window", {"max_steps": 12})
    stopped = run(llama_dir, "window", {"max_steps": 5})
    stopped.trainer.save_checkpoint(tmp_path / "after.ckpt")
    assert_went_on(run(llama_dir, "window", {"max_steps": 12}, ckpt_path=tmp_path / "after.ckpt"), whole)


@pytest.mark.filterwarnings("default:batches are padded")
def test_a_run_of_padded_batches_goes_on_with_padded_batches(llama_dir, tmp_path):
    """Its policy takes packs as soon as no window is too long to be tried: the layout is the checkpoint's."""
    config = MistralConfig(**LlamaConfig.from_pretrained(llama_dir).to_dict() | {"sliding_window": 9000})
    config.max_position_embeddings = 16384
    torch.manual_seed(0)
    MistralForCausalLM(config).save_pretrained(tmp_path / "mistral")
    AutoTokenizer.from_pretrained(llama_dir).save_pretrained(tmp_path / "mistral")
    layouts, ends = [], []
    for name, max_length, max_steps in (("whole", 10000, 5), ("stopped", 10000, 3), ("resumed", 64, 5)):
        model = module(tmp_path / "mistral", "copy soft")
        rows = PreferenceDataModule(tmp_path / "mistral", SyntheticPairs(14), batch_size=2, max_length=max_length)
        trainer = Trainer(max_steps=max_steps, enable_checkpointing=False, **QUIET)
        trainer.fit(model, rows, ckpt_path=tmp_path / "3.ckpt" if name == "resumed" else None)
        if name == "stopped":
            trainer.save_checkpoint(tmp_path / "3.ckpt")
        layouts.append(rows.packed)
        ends.append(model)
    assert layouts == [False, False, False]
    assert_went_on(ends[-1], ends[0])


def test_statistics_of_a_loss_go_on(llama_dir, tmp_path):
    class Running(KTO):
        """A baseline that is a running mean over the steps."""

        def statistics(self, sums, previous):
            now = super().statistics(sums, None)
            return now if previous is None else 0.9 * previous + 0.1 * now

    whole = run(llama_dir, "copy soft", {"max_steps": 9, "max_epochs": -1}, loss=Running())
    for accumulate, stop in ((1, 25), (3, 31)):
        options = {"max_steps": 9, "max_epochs": -1, "accumulate_grad_batches": accumulate}
        whole = run(llama_dir, "copy soft", options, loss=Running())
        run(llama_dir, "copy soft", options, tmp_path / str(stop), stop, loss=Running())
        resumed = run(llama_dir, "copy soft", options, ckpt_path=newest(tmp_path / str(stop)), loss=Running())
        assert_went_on(resumed, whole)
        assert torch.equal(resumed.scorer.statistics, whole.scorer.statistics)


def test_a_second_fit_begins_with_no_step_begun(llama_dir):
    """A stop within an accumulation leaves nothing to the next fit of the same module."""
    options = {"accumulate_grad_batches": 3, "max_steps": 2, "max_epochs": -1}
    whole = run(llama_dir, "frozen", options)
    again = module(llama_dir, "frozen")
    rows = PreferenceDataModule(llama_dir, SyntheticPairs(14), batch_size=2, seed=3)
    for callbacks in ([StopAt(5)], []):  # in the second batch
        trainer = Trainer(callbacks=callbacks, enable_checkpointing=False, **QUIET, **options)
        try:
            trainer.fit(again, rows)
        except Stop:
            again.zero_grad()
    assert all(map(torch.equal, again.policy.parameters(), whole.policy.parameters()))


def test_a_test_leaves_the_random_state_of_its_checkpoint_alone(llama_dir, tmp_path):
    run(llama_dir, "adapter soft", {"max_steps": 3}, tmp_path)
    losses = []
    for tested in (False, True):
        model = module(llama_dir, "adapter soft")
        rows = PreferenceDataModule(llama_dir, SyntheticPairs(14), val=SyntheticPairs(3, seed=8), batch_size=2)
        options = {**QUIET, "enable_checkpointing": False}
        if tested:
            Trainer(**options).test(module(llama_dir, "adapter soft"), rows, ckpt_path=tmp_path / "last.ckpt")
        torch.manual_seed(3)
        Trainer(max_steps=3, **options).fit(model, rows)
        losses.append(model.losses)
    assert losses[0] == losses[1]


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_is_loaded_by_another_module_strictly(llama_dir, kind):
    trained, other = run(llama_dir, kind, {"max_steps": 4}), module(llama_dir, kind)
    other.configure_model()
    state = {name: value.clone() for name, value in trained.state_dict().items()}
    if kind == "copy bfloat16":
        run(llama_dir, kind, {"max_steps": 2})
    other.load_state_dict(state)
    assert other.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
    missing = dict(list(state.items())[1:])
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict(missing)
    with pytest.raises(RuntimeError, match="Unexpected key"):
        other.load_state_dict(state | {"policy.nothing": torch.zeros(1)})


class EMA(EMAWeightAveraging):
    """Averages at each step from the first on."""

    def __init__(self):
        super().__init__(decay=0.5)


@pytest.mark.parametrize("kind", ["copy soft", "adapter soft", "adapter nf4", "window"])
def test_an_ema_of_the_weights_averages_the_policy_and_leaves_the_reference_alone(llama_dir, tmp_path, kind):
    """Against the policy after each step by hand, fresh and resumed; validation is of the average."""
    plain = run(llama_dir, kind, {"max_steps": 6, "max_epochs": -1, "limit_val_batches": 0})

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            weights = {name: p.detach().clone() for name, p in pl_module.named_parameters() if p.requires_grad}
            seen.append(weights)

    seen = []
    options = {"max_steps": 6, "max_epochs": -1, "limit_val_batches": 0}
    whole = run(llama_dir, kind, options, tmp_path / "whole", callbacks=[Watch(), EMA()])
    assert whole.losses == plain.losses
    checkpoint = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)
    average = seen[0]
    for weights in seen[1:]:
        average = {name: 0.5 * average[name] + 0.5 * value for name, value in weights.items()}
    for name, value in average.items():
        torch.testing.assert_close(checkpoint["state_dict"][name], value)
    references = {name: one for name, one in plain.state_dict().items() if name not in average}
    for name, one in references.items():
        assert torch.equal(checkpoint["state_dict"][name], one), name
    run(llama_dir, kind, {**options, "max_steps": 3}, tmp_path / "half", callbacks=[EMA()])
    half = tmp_path / "half" / "last.ckpt"
    resumed = run(llama_dir, kind, options, tmp_path / "resumed", ckpt_path=half, callbacks=[EMA()])
    assert resumed.losses == whole.losses[3:]
    again = torch.load(tmp_path / "resumed" / "last.ckpt", weights_only=True)
    for name, value in checkpoint["state_dict"].items():
        assert torch.equal(again["state_dict"][name], value), name


def test_stochastic_weight_averaging_is_refused(llama_dir):
    with pytest.raises(UserError, match="take EMAWeightAveraging"):
        run(llama_dir, "frozen", {"max_steps": 2}, callbacks=[StochasticWeightAveraging(0.1)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["copy soft", "copy bfloat16"])
def test_a_file_is_loaded_into_shards(llama_dir, tmp_path, kind):
    """One device wrote it, and a sharded run of one device goes on: policy, reference and average."""
    options = {"max_steps": 6, "max_epochs": -1}
    whole = run(llama_dir, kind, options)
    run(llama_dir, kind, {**options, "max_steps": 4}, tmp_path)
    sharded = {**options, "strategy": ModelParallelStrategy(1, 1), "devices": 1}
    resumed = run(llama_dir, kind, sharded, ckpt_path=tmp_path / "last.ckpt")
    assert [loss for _, loss in resumed.losses] == pytest.approx([loss for _, loss in whole.losses[4:]], rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [*((kind, {"max_epochs": 12}) for kind in KINDS), ("window", {"max_steps": 40, "max_epochs": -1})],
)
def test_a_run_that_is_killed_twice_goes_on_as_if_it_had_not_been(llama_dir, tmp_path, kind, options):
    """Kill -9 at any moment, also within the writing of a checkpoint: the newest complete one is gone on from."""
    options = {**options, "accumulate_grad_batches": 2, "val_check_interval": 3}
    draw, ckpt_path = random.Random(f"{kind} {options}"), ""
    for attempt in ("first", "second"):
        folder = tmp_path / attempt
        process = processes.start(run, llama_dir, kind, options, folder, None, ckpt_path or None)
        deadline = time.time() + 120
        while not list(folder.glob("*.ckpt")) and process.is_alive():
            assert time.time() < deadline
            time.sleep(0.02)
        time.sleep(draw.random() / 2)
        process.kill()
        process.join(60)
        complete = [path for path in folder.glob("*.ckpt") if is_complete(path)]
        ckpt_path = str(max(complete, key=lambda path: path.stat().st_mtime)) if complete else ckpt_path
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes had
    whole = run(llama_dir, kind, options)
    resumed = run(llama_dir, kind, options, ckpt_path=ckpt_path or None)
    torch.set_num_threads(threads)
    assert ckpt_path
    assert_went_on(resumed, whole)
