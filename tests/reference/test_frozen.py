import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_tr import PreferenceDataModule, PreferenceModule
from lit_tr.data import Rows
from lit_tr.embedded import SyntheticPairs
from lit_tr.errors import UserError
from lit_tr.losses import DPO, IPO, KTO
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.reference import FrozenReference

QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}

TOLD = (("train", "1/2"), ("train", "2/2"), ("val", "1/1"))


class Recorded(PreferenceModule):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.__dict__.setdefault("losses", []).append(loss.item())
        return loss


def run(path, folder, reference, loss=None, ckpt_path=None, policy=None, callbacks=(), train=None, **options):
    torch.manual_seed(0)
    model = Recorded(
        PretrainedPolicy(path, **(policy or {})),
        reference,
        loss or DPO(beta=0.5),
        lambda params: torch.optim.AdamW(params, lr=0.003),
    )
    options = {"batch_size": 3, **options}
    rows = PreferenceDataModule(path, train or SyntheticPairs(14), val=SyntheticPairs(5, seed=8), seed=3, **options)
    rows.mismatched = model.loss.mismatched
    trainer = Trainer(
        max_epochs=2, callbacks=list(callbacks), enable_checkpointing=bool(callbacks), default_root_dir=folder, **QUIET
    )
    trainer.fit(model, rows, ckpt_path=ckpt_path)
    return model


@pytest.mark.parametrize("options", [{}, {"packed": False}, {"batch_size": None, "max_tokens": 150}])
@pytest.mark.parametrize("loss", [DPO(beta=0.5), IPO(beta=0.5)])
def test_rows_scored_ahead_train_as_with_a_second_model(llama_dir, tmp_path, loss, options):
    ahead = run(llama_dir, tmp_path, FrozenReference(precompute=True), loss, **options)
    second = run(llama_dir, tmp_path, FrozenReference(), loss, **options)
    assert ahead.reference.model is None
    assert ahead.losses == pytest.approx(second.losses, rel=1e-4, abs=1e-6)
    for name in ("val/loss", "val/rewards/margins", "val/log_ratios"):
        ours, theirs = (model.trainer.callback_metrics[name].item() for model in (ahead, second))
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    assert ahead.trainer.callback_metrics["val/log_ratios"] != 0


def test_kto_scores_kl_rows_of_the_set_ahead(llama_dir, tmp_path):
    """By hand: the baseline is the mean log-ratio of each prompt with the responses of the row before it in the set."""
    model = run(llama_dir, tmp_path, FrozenReference(precompute=True), KTO(beta=0.5), batch_size=14)
    assert model.losses[0] == pytest.approx(0.5)
    rows = model.trainer.datamodule.examples["train"]
    start = PretrainedPolicy(llama_dir).load().eval()
    for i in (0, 5):
        previous = rows[i - 1]
        assert [row.chosen for row in rows[i].ahead.kl_rows] == [previous.chosen, previous.rejected]
        for row, found in zip(rows[i].ahead.kl_rows, rows[i].ahead.kl_log_probs, strict=True):
            with torch.no_grad():
                logits = start(torch.tensor([row.prompt + row.chosen])).logits[0].log_softmax(-1)
            first = len(row.prompt) - 1
            expected = [logits[first + j, token].item() for j, token in enumerate(row.chosen)]
            assert found.tolist() == pytest.approx(expected, abs=1e-4)


def test_unpaired_rows_are_scored_ahead(llama_dir, tmp_path, write_rows, rows):
    unpaired = [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": i % 3 > 0} for i, row in enumerate(rows[:9])
    ]
    path = write_rows(unpaired)
    ahead, second = (
        run(llama_dir, tmp_path, FrozenReference(precompute=ahead), KTO(beta=0.5), train=Rows(path), batch_size=9)
        for ahead in (True, False)
    )
    assert ahead.losses[0] == pytest.approx(second.losses[0])


def test_what_was_scored_is_found_again_by_model_and_rows(llama_dir, tmp_path, monkeypatch):
    run(llama_dir, tmp_path, FrozenReference(precompute=True))
    files = set((tmp_path / "reference_log_probs").iterdir())
    assert len(files) == 2  # of training and of validation
    monkeypatch.setattr("lit_tr.reference.ahead.score", lambda *args: pytest.fail("scored again"))
    run(llama_dir, tmp_path, FrozenReference(precompute=True))
    monkeypatch.undo()
    run(llama_dir, tmp_path, FrozenReference(precompute=True), train=SyntheticPairs(14, seed=2))
    assert len(set((tmp_path / "reference_log_probs").iterdir()) - files) == 1
    run(llama_dir, tmp_path, FrozenReference(precompute=True), policy={"dtype": "bfloat16"})
    assert len(set((tmp_path / "reference_log_probs").iterdir()) - files) == 3


def test_a_resumed_run_finds_the_log_probs_of_the_start(llama_dir, tmp_path):
    kept = ModelCheckpoint(tmp_path, save_top_k=-1, every_n_train_steps=1, filename="{step}")
    whole = run(llama_dir, tmp_path, FrozenReference(precompute=True), callbacks=[kept])
    for step in (3, 5):  # 5 steps an epoch
        resumed = run(llama_dir, tmp_path, FrozenReference(precompute=True), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert resumed.losses == whole.losses[step:]
        assert all(map(torch.equal, resumed.policy.parameters(), whole.policy.parameters()))
    other = {"train": SyntheticPairs(14, seed=2)}
    with pytest.raises(UserError, match="are those of other rows"):
        run(llama_dir, tmp_path, FrozenReference(precompute=True), ckpt_path=tmp_path / "step=3.ckpt", **other)
    for path in (tmp_path / "reference_log_probs").iterdir():
        path.unlink()
    with pytest.raises(UserError, match="the initial policy's log-probs are gone"):
        run(llama_dir, tmp_path, FrozenReference(precompute=True), ckpt_path=tmp_path / "step=3.ckpt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": {"lora": LoRA(r=4)}}, "with an adapter there is none: leave it out"),
        ({"buffer": 8}, "leave data.buffer out, or precompute"),
    ],
)
def test_what_cannot_be_scored_ahead_is_named(llama_dir, tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        run(llama_dir, tmp_path, FrozenReference(precompute=True), **options)


def test_outside_of_training_the_start_is_held(llama_dir, tmp_path):
    model = PreferenceModule(PretrainedPolicy(llama_dir), FrozenReference(precompute=True), DPO())
    rows = PreferenceDataModule(llama_dir, SyntheticPairs(4), val=SyntheticPairs(5, seed=8), batch_size=2)
    (metrics,) = Trainer(**QUIET, enable_checkpointing=False).validate(model, rows)
    assert metrics["val/loss"] == pytest.approx(0.693147, abs=1e-5)


def test_log_probs_that_were_computed_ahead_are_never_cast(llama_dir, tmp_path):
    """bf16-true casts what is in a batch: 0.1 nats would be lost of 100."""
    torch.manual_seed(0)
    model = PreferenceModule(PretrainedPolicy(llama_dir), FrozenReference(precompute=True), DPO(), log_initial=False)
    rows = PreferenceDataModule(llama_dir, SyntheticPairs(4), batch_size=4, shuffle=False)
    options = {**QUIET, "precision": "bf16-true", "max_steps": 1, "enable_checkpointing": False}
    trainer = Trainer(default_root_dir=tmp_path, **options)
    trainer.fit(model, rows)
    assert trainer.callback_metrics["train/log_ratios"] == 0
    assert trainer.callback_metrics["train/loss"] == pytest.approx(0.693147, abs=1e-6)


def test_what_takes_long_says_how_many_batches_are_scored(llama_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("lit_tr.reference.ahead.SILENT", 0.0)
    run(llama_dir, tmp_path, FrozenReference(precompute=True), train=SyntheticPairs(20))  # 16 rows to a batch
    said = [line.partition(" batches")[0] for line in capsys.readouterr().out.splitlines() if "log-probs" in line]
    assert said == [f"data.{of}: the reference's log-probs  {done}" for of, done in TOLD]
