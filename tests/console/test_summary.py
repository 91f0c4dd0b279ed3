import re

import pytest
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger

from lit_tr import PreferenceDataModule, PreferenceModule
from lit_tr.commands import main
from lit_tr.embedded import SyntheticPairs
from lit_tr.losses import DPO
from lit_tr.reference import CopyReference


@pytest.fixture
def no_seed(monkeypatch):
    """No seed of an earlier test, and none that stays."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def fit(llama_dir, folder, **options):
    """The lines that a run in Python prints, by their names."""
    quiet = {"accelerator": "cpu", "default_root_dir": folder, "enable_progress_bar": False, "logger": False}
    trainer = Trainer(max_steps=3, log_every_n_steps=1, **{**quiet, **options})
    data = PreferenceDataModule(llama_dir, SyntheticPairs(32), batch_size=4)
    trainer.fit(PreferenceModule(llama_dir, CopyReference(), DPO()), data)


def named(text):
    return dict(re.findall(r"^(\w+) {2,}(\S.*)$", text, re.MULTILINE))


def test_the_end_of_a_run_in_python_says_what_was_reached_and_where_it_is(llama_dir, tmp_path, capsys):
    fit(llama_dir, tmp_path, logger=CSVLogger(tmp_path))
    said = named(capsys.readouterr().out)
    assert [*said][-4:] == ["finished", "reached", "files", "checkpoint"]
    assert re.fullmatch(r"at step 3, after 0:\d\d", said["finished"])
    assert re.fullmatch(r"loss \d\.\d{4}, accuracy \d.*\(training\)", said["reached"])
    assert said["files"] == f"{tmp_path}/lightning_logs/version_0: metrics.csv"
    [saved] = tmp_path.rglob("*.ckpt")
    assert said["checkpoint"] == str(saved)


class Stop(Callback):
    """Stops after step 2."""

    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = trainer.global_step == 2


def test_a_run_without_files_names_none_and_one_that_stops_says_of_how_many(llama_dir, tmp_path, capsys):
    fit(llama_dir, tmp_path, enable_checkpointing=False, callbacks=[Stop()])
    said = named(capsys.readouterr().out)
    assert [*said][-2:] == ["finished", "reached"]
    assert said["finished"].startswith("at step 2 of 3, after")


def test_a_run_without_a_summary_says_nothing(llama_dir, tmp_path, capsys):
    fit(llama_dir, tmp_path, enable_checkpointing=False, enable_model_summary=False)
    assert capsys.readouterr().out == ""


def test_the_seed_is_said_where_there_is_one(no_seed, llama_dir, tmp_path, capsys):
    fit(llama_dir, tmp_path, enable_checkpointing=False)
    assert named(capsys.readouterr().out)["steps"] == "3"
    seed_everything(0, verbose=False)
    fit(llama_dir, tmp_path, enable_checkpointing=False)
    assert named(capsys.readouterr().out)["steps"] == "3, seed 0"


def test_a_seed_that_nobody_gave_is_said_once_and_so_is_the_end(no_seed, tmp_path, capsys):
    sizes = ["--data.train.size=8", "--data.val=null", "--trainer.callbacks=null", "--update=null"]
    options = ["--config=quickstart", f"--trainer.default_root_dir={tmp_path}", "--trainer.max_steps=1", *sizes]
    main(["fit", *options, "--seed_everything=true"])
    said = capsys.readouterr()
    assert re.fullmatch(r"1, seed \d+", named(said.out)["steps"])
    assert "seed" not in said.err
    assert len(re.findall(r"^finished", said.out, re.MULTILINE)) == 1
    main(["fit", *options, "--trainer.enable_model_summary=false"])
    assert "finished" in named(capsys.readouterr().out)
