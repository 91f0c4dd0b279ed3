"""What the README says runs as it stands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lit_tr.commands import main
from lit_tr.commands.main import VERBS
from lit_tr.reference.base import updates_of
from tests.runs import metrics

README = (Path(__file__).parents[1] / "README.md").read_text()
PYTHON, YAML, SHELL = (re.findall(rf"```{one}\n(.*?)```", README, re.DOTALL) for one in ("python", "yaml", "bash"))
SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"


def test_python_runs_as_pasted(llama_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(PYTHON[0].splitlines()) <= 15
    found = {}
    for block in PYTHON:
        exec(block.replace(SMALL, llama_dir).replace("Trainer(", 'Trainer(accelerator="cpu", '), found)
    trainer = found["module"].trainer
    assert trainer.global_step == 4
    assert len(found["data"].examples["train"]) == len(found["rows"])
    [update] = updates_of(trainer)
    assert update.updates == 2


def test_the_yaml_runs(llama_dir, write_rows, rows, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = YAML
    assert len(block.splitlines()) <= 10
    (tmp_path / "mine.yaml").write_text(block.replace(SMALL, llama_dir).replace("pairs.jsonl", write_rows(rows)))
    main(
        [
            "fit",
            "--config=mine.yaml",
            "--trainer.max_steps=1",
            "--trainer.log_every_n_steps=1",
            "--trainer.accelerator=cpu",
        ]
    )
    assert len(metrics("runs")) > 0


@pytest.mark.slow
def test_the_shell_blocks_run_as_pasted(llama_dir, tmp_path):
    """One after the other in an empty folder, where lit_tr is installed; the quickstart's run has two steps."""
    install, quickstart, *others = "".join(SHELL).splitlines()
    assert install.endswith("pip install .")
    short = "--trainer.max_steps 2 --trainer.callbacks null --trainer.limit_val_batches 1 --data.val.size 8"
    (tmp_path / "mine.yaml").write_text(YAML[0].replace(SMALL, llama_dir))
    [fit_mine] = re.findall("lit-tr fit --config mine.yaml", YAML[0])
    shell = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = "\n".join(["set -e", f"{quickstart} {short}", *others, f"{fit_mine} --trainer.accelerator cpu"])
    run = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=shell, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    [report] = tmp_path.glob("runs/quickstart/*/report.html")
    assert all(name in report.read_text() for name in ("trained over initial", "token_rewards"))
    assert metrics(tmp_path / "runs")
    page = (Path(__file__).parents[1] / "docs/guides/report.md").read_text()
    assert SHELL[-1] in page


def test_each_file_and_verb_that_is_named_is_there():
    root = Path(__file__).parents[1]
    paths = [path for path in re.findall(r"\]\(([^)#]+)\)|python (tests/\S+\.py)", README) for path in path if path]
    assert len(paths) > 15
    for path in paths:
        assert path.startswith("https://") or (root / path).exists(), path
    for verb in re.findall(r"lit-tr (\w+)", README):
        assert verb in VERBS
