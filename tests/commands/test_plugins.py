"""What one writes oneself goes through the command line by its class_path, and needs no line in the package."""

import inspect
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from lit_tr.commands import main
from tests.commands import own_parts
from tests.runs import losses

STEPS = 6
NO_DECAY = "--model.optimizer.weight_decay=0"  # which SGD takes over from the default AdamW


@pytest.fixture
def fit(config, tmp_path, monkeypatch, write_rows):
    """Run lit-tr fit in a folder that holds own_parts.py, all of it named by class_path; return the run's folder."""
    (tmp_path / "own_parts.py").write_text(Path(own_parts.__file__).read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)
    rows = [{"question": f"Is {i} even?", "right": f" {i % 2 == 0}.", "wrong": f" {i % 2 == 1}."} for i in range(16)]
    content = yaml.safe_load(Path(config).read_text())
    model = content["model"] | {
        "reference": {"class_path": "own_parts.SignReference", "init_args": {"size": 0.002}},
        "loss": {"class_path": "own_parts.Hinge", "init_args": {"delta": 2.0}},
        "factor": 3.0,
    }
    content["model"] = {"class_path": "own_parts.ScaledModule", "init_args": model}
    train = {"path": write_rows(rows), "format": "own_parts.quiz"}
    content["data"] |= {"train": {"class_path": "lit_tr.data.Rows", "init_args": train}, "val": None}
    Path("own.yaml").write_text(yaml.dump(content))

    def run(name, steps, *options):
        main(
            ["fit", "--config=own.yaml", f"--trainer.default_root_dir={name}", f"--trainer.max_steps={steps}", *options]
        )
        return tmp_path / name

    return run


def last(root):
    return max(root.rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)


def test_parts_of_ones_own_are_trained_resumed_and_exported(fit, tmp_path, llama_dir):
    whole, resumed = fit("whole", STEPS), fit("resumed", 3)
    fit("resumed", STEPS, "--ckpt_path=last")
    assert losses(resumed, 1) == losses(whole)
    ours, theirs = (torch.load(last(root), weights_only=True)["state_dict"] for root in (resumed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())

    assert float(losses(whole)[0]) == pytest.approx(2.0)  # the hinge of equal policies is its delta
    start = AutoModelForCausalLM.from_pretrained(llama_dir).state_dict()
    moves = torch.cat([(theirs[f"reference.model.{name}"] - start[name]).flatten() for name in start])
    assert 0 < moves.abs().max() <= 3 * 0.5 * 0.002 + 1e-6  # three updates of alpha 0.5

    main(["export", f"--checkpoint={last(whole)}", "--output=out"])
    exported = AutoModelForCausalLM.from_pretrained("out").state_dict()
    assert all(torch.equal(exported[name], theirs[f"policy.{name}"]) for name in exported)
    module = sys.modules["own_parts"].ScaledModule.load_from_checkpoint(last(whole))
    assert (module.factor, module.loss.delta, module.reference.size) == (3.0, 2.0, 0.002)


def test_the_factor_of_the_module_scales_the_step(fit, llama_dir):
    """A step of SGD is as long as the loss is large."""
    start = AutoModelForCausalLM.from_pretrained(llama_dir).state_dict()
    moved = {}
    for factor in (1, 3):
        state = torch.load(last(fit(f"by {factor}", 1, f"--model.factor={factor}", NO_DECAY)), weights_only=True)[
            "state_dict"
        ]
        moved[factor] = torch.cat([(state[f"policy.{name}"] - start[name]).flatten() for name in start])
    assert moved[1].abs().max() > 0
    torch.testing.assert_close(moved[3], 3 * moved[1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("part", ["SignReference", "Hinge", "quiz", "ScaledModule"])
def test_each_of_them_is_short(part):
    assert len(inspect.getsource(getattr(own_parts, part)).splitlines()) < 25
