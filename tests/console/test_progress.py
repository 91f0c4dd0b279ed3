"""What a run prints: in a pipe, with a terminal of several widths, and where colours are turned off."""

import io
import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import time

import pytest
import yaml
from lightning.pytorch import Callback, Trainer
from rich.console import Console

from lit_tr import PreferenceDataModule, PreferenceModule, SoftReferenceUpdate
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


class Stop(Callback):
    """Stops after step 3."""

    def on_train_batch_end(self, trainer, *args):
        trainer.should_stop = trainer.global_step == 3


class Often(SoftReferenceUpdate):
    """Updates at steps 1, 2, 3 and 5."""

    def is_due(self, trainer, pl_module, batch):
        return trainer.global_step in (1, 2, 3, 5)


def fit(folder, callbacks, size=32, **options):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(callbacks=callbacks, **quiet, **options)
    data = PreferenceDataModule(folder, SyntheticPairs(size), batch_size=4)
    trainer.fit(PreferenceModule(folder, CopyReference(), DPO()), data)


def test_lines_count_the_updates_that_get_none_of_their_own(llama_dir, capsys):
    fit(llama_dir, [Often(), RunProgress()], max_steps=6, log_every_n_steps=3)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line[:6] for line in lines] == ["step 1", "step 3", "step 6"]
    assert [re.findall(r"  (\d updates?)  lr", line) for line in lines] == [["1 update"], ["2 updates"], ["1 update"]]


def test_a_long_step_says_how_far_it_is(llama_dir, capsys):
    fit(llama_dir, [RunProgress(every_seconds=0)], size=20, max_epochs=1, accumulate_grad_batches=3)
    lines = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert lines == ["step 1, batch 1 of 3", "step 1, batch 2 of 3", "step 1/2", "step 2, batch 1 of 2", "step 2/2"]


def test_the_last_step_gets_a_line_with_its_figures(llama_dir, capsys):
    fit(llama_dir, [RunProgress()], max_steps=4)
    first, last = (line for line in capsys.readouterr().out.splitlines() if line.startswith("step "))
    assert re.match(r"step 1/4  lr", first)
    assert re.match(r"step 4/4  loss [\d.]+  accuracy", last)


def test_a_step_that_is_the_last_one_unforeseen_gets_a_line(llama_dir, capsys):
    fit(llama_dir, [RunProgress(), Stop()], max_steps=6)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert [line[:8] for line in lines] == ["step 1/6", "step 3/6"]


@pytest.mark.parametrize("verb", ["validate", "test", "predict"])
def test_evaluations_count_their_batches(llama_dir, capsys, verb):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(callbacks=[RunProgress(every_seconds=0)], **quiet)
    rows = SyntheticPairs(12)
    data = PreferenceDataModule(llama_dir, rows, val=rows, test=rows, batch_size=4)
    getattr(trainer, verb)(PreferenceModule(llama_dir, CopyReference(), DPO()), data)
    lines = [line.split("  ")[:2] for line in capsys.readouterr().out.splitlines() if line.startswith(f"{verb}  ")]
    assert lines == [[verb, f"{number}/3 batches"] for number in (1, 2, 3)]


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


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("tmux") is None, reason="needs tmux")
def test_in_tmux_the_display_changes_in_place_and_nothing_but_lines_to_copy_is_wrapped(options, tmp_path):
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}

    def tmux(*words):
        command = ["tmux", "-S", str(tmp_path / "socket"), "-f", os.devnull, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=kept).stdout

    def pane(columns):  # the lines as they were printed, those that tmux has wrapped as one
        return [line.rstrip() for line in tmux("capture-pane", "-pJ", "-t", f"w{columns}").splitlines()]

    widths = (60, 80, 120)
    fit = shlex.join([sys.executable, "-m", "lit_tr", "fit", *options])
    try:
        for columns in widths:
            size = ("-x", str(columns), "-y", "50")
            tmux("new-session", "-d", "-s", f"w{columns}", *size, fit, ";", "set", "-g", "remain-on-exit", "on")
        running, until = {*widths}, time.monotonic() + 120
        while running:
            assert time.monotonic() < until, "\n".join(pane(min(running)))
            running = {one for one in running if not any(line.startswith("  lit-tr report") for line in pane(one))}
            time.sleep(0.2)
        for columns in widths:
            shown = pane(columns)
            [bar] = [line for line in shown if re.match(r"step \d/6 ", line)]
            assert re.fullmatch(r"step 6/6 ━+ .* left 0:00", bar)
            assert len(bar) == columns
            assert all(line.startswith(("  lit-tr ", "step 4  ")) for line in shown if len(line) > columns)
            assert {"policy", "folder", "finished", "reached", "files", "checkpoint"} <= {
                line.split("  ")[0] for line in shown
            }
            assert [words[0] for words in commands("\n".join(shown))] == ["export", "report"]
    finally:
        tmux("kill-server")


def _read(file):
    try:
        return os.read(file, 65536)
    except OSError:  # the other end is closed
        return b""
