"""What a run prints: in a pipe, with a terminal of several widths, and where colours are turned off."""

import io
import os
import pty
import re
import shlex
import subprocess
import sys

import pytest
import yaml
from lightning.pytorch import Callback, Trainer
from rich.console import Console

from lit_tr import PreferenceDataModule, PreferenceModule
from lit_tr.commands.main import main
from lit_tr.console import RunProgress
from lit_tr.console.terminal import is_live
from lit_tr.embedded import SyntheticPairs
from lit_tr.losses import DPO
from lit_tr.reference import CopyReference

LINE = re.compile(
    r"step (\d+)/6(  loss [\d.]+  accuracy [\d.]+  margin [-\d.]+  log-ratio [-\d.]+  to initial [-\d.]+)?"
    r"  lr [\d.e-]+  [\d.]+ pairs/s  [\d,]+ tokens/s  [\d.]+ GB  left \d+:\d\d"
)


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    sizes = ("--data.train.size=32", "--data.val.size=4", "--data.batch_size=4", "--trainer.val_check_interval=4")
    callbacks = ("--trainer.callbacks=null", "--update.every_n_steps=4", "--trainer.log_every_n_steps=2")
    return ["--config=quickstart", f"--trainer.default_root_dir={root}", "--trainer.max_steps=6", *sizes, *callbacks]


def test_a_pipe_gets_the_start_a_line_at_each_logged_step_and_the_end(options, capsys):
    main(["fit", *options])
    said = capsys.readouterr()
    lines = said.out.splitlines()
    named = [line.split("  ")[0].strip() for line in lines]
    assert named[:7] == ["policy", "reference", "loss", "memory", "data", "steps", "folder"]
    assert "SoftReferenceUpdate every 4 steps, alpha 0.6" in lines[1]
    assert lines[4].endswith("train 32 examples, val 4 examples")
    steps = [found for found in map(LINE.fullmatch, lines) if found]
    assert [int(found[1]) for found in steps] == [1, 2, 4, 6]
    assert [bool(found[2]) for found in steps] == [False, True, True, True]
    assert "step 4  reference updated (1 so far)" in lines
    assert sum(line.startswith("step 4  validation  loss") for line in lines) == 1
    assert any(line.startswith("finished") and "at step 6, after" in line for line in lines)
    assert sum(line.startswith("  lit-tr ") for line in lines) == 2
    assert lines[3].endswith("(model.log_initial false leaves the last out)")
    assert said.err == ""


def commands(text):
    """The commands that a run has printed, as words."""
    return [shlex.split(line)[1:] for line in text.splitlines() if line.startswith("  lit-tr ")]


def test_the_commands_that_are_printed_run_also_in_a_folder_with_a_space(options, tmp_path, capsys):
    stop = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/loss", "stopping_threshold": 100}}
    (tmp_path / "stop.yaml").write_text(yaml.dump({"trainer": {"callbacks": [stop]}}))
    root = f"--trainer.default_root_dir={tmp_path / 'my runs'}"
    main(["fit", *options, f"--config={tmp_path / 'stop.yaml'}", root])
    goes_on, *others = commands(capsys.readouterr().out)
    main(goes_on)
    said = capsys.readouterr().out
    assert "from step 4 on" in said
    assert [words[0] for words in commands(said)] == ["export", "report"]  # for it is at its end
    assert [words[0] for words in others] == ["export", "report"]
    for words in others:
        main(words)


def test_a_run_without_a_logged_row_has_no_report(options, capsys):
    quiet = ["--trainer.max_steps=1", "--trainer.val_check_interval=null", "--trainer.log_every_n_steps=100"]
    main(["fit", *options, *quiet, "--data.val=null"])
    assert "report" not in [words[0] for words in commands(capsys.readouterr().out)]


def test_speeds_leave_validations_out(llama_dir, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("lit_tr.speed._now", lambda device: now[0])

    class Clock(Callback):
        def on_train_batch_start(self, *args):
            now[0] += 2

        def on_validation_batch_start(self, *args):
            now[0] += 1000

    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(
        max_steps=6, log_every_n_steps=2, val_check_interval=3, callbacks=[RunProgress(), Clock()], **quiet
    )
    data = PreferenceDataModule(llama_dir, SyntheticPairs(32), val=SyntheticPairs(4), batch_size=4)
    trainer.fit(PreferenceModule(llama_dir, CopyReference(), DPO()), data)
    said = capsys.readouterr().out
    assert said.count("validation  loss") == 2
    assert re.findall(r"([\d.]+) pairs/s", said) == ["2.0"] * 4


@pytest.mark.parametrize(
    ("terminal", "environment", "live"),
    [
        (True, {"TERM": "xterm"}, True),
        (True, {"TERM": "dumb"}, False),
        (True, {"TERM": "xterm", "NO_COLOR": "1"}, False),
        (False, {"TERM": "xterm"}, False),
    ],
)
def test_what_changes_in_place_is_for_terminals(terminal, environment, live, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_live(Console(file=io.StringIO(), force_terminal=terminal)) is live


@pytest.mark.slow
@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_terminal_gets_a_live_display_of_its_width(options, columns):
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "LINES": "40", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "lit_tr", "fit", *options], stdout=theirs, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = b""
    while part := _read(ours):
        shown += part
    assert process.wait(60) == 0
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.decode())
    drawn = [line for line in re.split(r"[\r\n]+", text) if line.startswith("step ") and "left" in line]
    assert drawn
    assert all(len(line) <= columns for line in drawn)
    assert "1 reference updates" in re.sub(r"\s+", " ", text)


def _read(file):
    try:
        return os.read(file, 65536)
    except OSError:  # the other end is closed
        return b""
