"""Training on streams, through Lightning."""

import json

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lit_tr import HardReferenceUpdate, PreferenceDataModule, PreferenceModule, SoftReferenceUpdate
from lit_tr.data import Rows
from lit_tr.embedded import SyntheticPairs
from lit_tr.errors import UserError
from lit_tr.losses import DPO, KTO
from lit_tr.policy import PretrainedPolicy
from lit_tr.reference import CopyReference, WindowReference

QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Crash(Callback):
    """Keeps the loss and the targets of each batch, and stops a run within an epoch if it shall."""

    def __init__(self, batches=None):
        self.batches, self.seen, self.first_epoch = batches, [], 0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append((outputs["loss"].item(), batch.targets.tolist()))
        self.first_epoch += trainer.current_epoch == 0
        if len(self.seen) == self.batches:
            raise RuntimeError("crash")


def fit(path, rows, callbacks, ckpt_path=None, workers=0, reference=None, update=None, loss=None, **options):
    torch.manual_seed(0)
    model = PreferenceModule(
        PretrainedPolicy(path),
        reference or CopyReference(),
        loss or DPO(beta=0.5),
        optimizer=lambda params: torch.optim.AdamW(params, lr=0.01),
    )
    size = {"max_tokens": 160} if "batch_size" not in options else {"batch_size": options.pop("batch_size")}
    data = PreferenceDataModule(
        path,
        rows,
        val=SyntheticPairs(4, seed=8),
        buffer=8,
        num_workers=workers,
        seed=4,
        **size,
        **options.pop("data", {}),
    )
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    options = {**QUIET, "max_epochs": 2, "enable_checkpointing": saves, **options}
    trainer = Trainer(callbacks=[update or SoftReferenceUpdate(), *callbacks], **options)
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return model, trainer


@pytest.fixture(scope="module")
def shards(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("shards")
    for shard, (first, last) in enumerate([(0, 9), (9, 26)]):
        (folder / f"{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[first:last]))
    return Rows(str(folder / "*.jsonl"))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("where", ["mid-epoch", "epoch end", "mid-accumulation", "second epoch"])
def test_a_run_on_a_stream_goes_on_as_the_uninterrupted_one(llama_dir, shards, tmp_path, where, workers):
    def saved(name):
        return ModelCheckpoint(tmp_path / name, save_last=True, every_n_train_steps=1)

    accumulate = 3 if where == "mid-accumulation" else 1
    options = {"workers": workers, "accumulate_grad_batches": accumulate}
    whole = Crash()
    ours, trainer = fit(llama_dir, shards, [whole, saved("whole")], **options)
    an_epoch = whole.first_epoch
    assert an_epoch > 4
    batches = {"mid-epoch": 3, "epoch end": an_epoch + 1, "mid-accumulation": 5, "second epoch": an_epoch + 3}[where]
    with pytest.raises(RuntimeError, match="crash"):
        fit(llama_dir, shards, [Crash(batches), saved("crashed")], **options)
    steps = torch.load(tmp_path / "crashed" / "last.ckpt", weights_only=True)["global_step"]
    assert steps > 0
    resumed = Crash()
    theirs, again = fit(llama_dir, shards, [resumed, saved("resumed")], tmp_path / "crashed" / "last.ckpt", **options)
    assert 0 < len(resumed.seen) < len(whole.seen)
    assert resumed.seen == whole.seen[-len(resumed.seen) :]
    assert trainer.global_step == again.global_step
    assert trainer.current_epoch == again.current_epoch
    for (name, one), other in zip(theirs.state_dict().items(), ours.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


def test_each_epoch_has_each_row_once(llama_dir, shards):
    record = Crash()
    fit(llama_dir, shards, [record])
    an_epoch = record.first_epoch
    epochs = [
        sorted(sum((targets for _, targets in part), [])) for part in (record.seen[:an_epoch], record.seen[an_epoch:])
    ]
    assert epochs[0] == epochs[1]


def test_bad_rows_of_a_stream_are_listed_and_logged(llama_dir, rows, write_rows, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("lit_tr.data.datamodule.rank_zero_info", said.append)
    bad = [{**rows[0], "rejected": ""}, rows[1], {"question": 1} | {**rows[2], "chosen": None}, *rows[3:9]]
    path = write_rows(bad)
    logger = CSVLogger(tmp_path)
    fit(llama_dir, Rows(path), [], logger=logger, data={"max_bad_rows": 99})
    listed = [json.loads(line) for line in (tmp_path / "lightning_logs/version_0/bad_rows.train.0.jsonl").open()]
    assert [(row["location"], row["reason"]) for row in listed] == [
        (f"{path}, row 0", "'rejected' is an empty response"),
        (f"{path}, row 2", "no 'chosen'"),
    ]
    assert said[-1].startswith("data.train: left out 2 rows: 1 x 'rejected' is an empty response; 1 x no 'chosen'")
    assert "lightning_logs" in said[-1]


def test_a_bad_row_of_a_stream_ends_training_with_its_location(llama_dir, rows, write_rows):
    path = write_rows([*rows[:5], {**rows[5], "rejected": ""}])
    with pytest.raises(UserError, match=f"first is {path}, row 5: 'rejected' is an empty response. Fix them"):
        fit(llama_dir, Rows(path), [], workers=1)


def test_kto_of_a_stream(llama_dir, shards):
    record = Crash()
    fit(llama_dir, shards, [record], loss=KTO(), batch_size=5, data={"mismatched": True})
    assert len(record.seen) == 2 * 6


@pytest.mark.parametrize("given", [{"devices": 1, "workers": 1}])
def test_a_resume_with_other_workers_is_refused(llama_dir, shards, tmp_path, given):
    saved = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    with pytest.raises(RuntimeError, match="crash"):
        fit(llama_dir, shards, [Crash(3), saved])
    with pytest.raises(UserError, match="go on with as many"):
        fit(llama_dir, shards, [], tmp_path / "last.ckpt", **given)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_window_over_a_stream_trains_as_a_second_model(llama_dir, shards, tmp_path, accumulate):
    """Lightning fetches a batch ahead of a stream, which must not be scored before its window begins; and on resume."""
    seen = {}
    options = {"update": HardReferenceUpdate(2), "accumulate_grad_batches": accumulate}
    for reference in (WindowReference, CopyReference):
        record = Crash()
        fit(llama_dir, shards, [record], reference=reference(), enable_checkpointing=False, **options)
        seen[reference] = record.seen
    assert seen[WindowReference] == seen[CopyReference]
    saved = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1)
    with pytest.raises(RuntimeError, match="crash"):
        fit(llama_dir, shards, [Crash(5), saved], reference=WindowReference(), **options)
    resumed = Crash()
    fit(llama_dir, shards, [resumed], tmp_path / "last.ckpt", reference=WindowReference(), **options)
    assert resumed.seen == seen[CopyReference][-len(resumed.seen) :]
    assert len(resumed.seen) > len(seen[CopyReference]) - 5
