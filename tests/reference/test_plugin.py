"""A reference that lit_tr does not know trains, saves, resumes and is planned, by its class_path."""

import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch import Trainer
from transformers import AutoModelForCausalLM

from lit_tr import HardReferenceUpdate, PreferenceDataModule, PreferenceModule
from lit_tr.commands import main
from lit_tr.embedded import SyntheticPairs
from lit_tr.losses import DPO
from tests.reference import lagged
from tests.runs import losses, metrics


@pytest.fixture
def own(config, tmp_path, monkeypatch):
    """The options that name a copy of lagged.py in the working directory."""
    (tmp_path / "mine.py").write_text(Path(lagged.__file__).read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    content = yaml.safe_load(Path(config).read_text())
    content["model"] |= {"reference": {"class_path": "mine.LaggedReference", "init_args": {"lag": 3}}}
    content["update"] = {"class_path": "lit_tr.HardReferenceUpdate", "init_args": {"every_n_steps": 1}}
    content["trainer"]["accumulate_grad_batches"] = 2
    Path("own.yaml").write_text(yaml.dump(content))
    return "--config=own.yaml"


def test_it_trains_saves_and_resumes(own, tmp_path, llama_dir):
    for root, steps, options in (("whole", 5, []), ("run", 3, []), ("run", 5, ["--ckpt_path=last"])):
        main(["fit", own, f"--trainer.default_root_dir={root}", f"--trainer.max_steps={steps}", *options])
    assert losses(tmp_path / "run", 1) == losses(tmp_path / "whole")
    assert {row["reference/lag"] for row in metrics(tmp_path / "run") if row.get("reference/lag")} == {"3.0"}
    checkpoint = max((tmp_path / "run").rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["lit_tr_ranks"][0]["reference"] == 10  # batches, over both runs
    start = AutoModelForCausalLM.from_pretrained(llama_dir).state_dict()
    state = saved["state_dict"]
    for name in start:  # after 5 updates the newest copy is the policy, and no copy is the start
        assert torch.equal(state[f"reference.copies.2.{name}"], state[f"policy.{name}"])
    assert not torch.equal(state["reference.copies.0.lm_head.weight"], start["lm_head.weight"])
    module = PreferenceModule.load_from_checkpoint(checkpoint)
    assert module.reference.lag == 3
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_its_hooks_are_called_in_their_order():
    module = PreferenceModule("embedded:tiny", lagged.LaggedReference(), DPO())
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        accelerator="cpu", max_steps=2, callbacks=HardReferenceUpdate(), enable_checkpointing=False, **quiet
    )
    trainer.fit(module, PreferenceDataModule("embedded:tiny", SyntheticPairs(8), batch_size=2))
    assert module.reference.log == ["setup", "prepare", "on_fit_start", "on_train_start"]
    assert module.reference.batches == 2


def test_it_refuses_before_weights_are_loaded(own, capsys, monkeypatch):
    monkeypatch.setattr("lit_tr.policy.loading.PretrainedPolicy.load", lambda *args, **kwargs: pytest.fail("loaded"))
    with pytest.raises(SystemExit) as stopped:
        main(["fit", own, "--trainer.accumulate_grad_batches=5"])
    assert stopped.value.code == 2
    assert "counts up to 4 batches a step" in capsys.readouterr().err


def test_it_is_planned(own, capsys, monkeypatch, llama_dir):
    monkeypatch.setenv("COLUMNS", "200")
    main(["plan", own])
    said = capsys.readouterr().out
    weights = sum(param.nbytes for param in AutoModelForCausalLM.from_pretrained(llama_dir).parameters())
    (line,) = [line for line in said.splitlines() if "configured: LaggedReference" in line and "MB" in line]
    sizes = [float(size) for size in re.findall(r"([\d.]+) MB", line)]
    assert sizes[0] == pytest.approx(4 * weights / 1e6, abs=0.02)  # three models of its own, and the initial policy
