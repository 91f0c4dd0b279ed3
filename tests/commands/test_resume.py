import math
from pathlib import Path

import pytest
import torch
import yaml

from lit_tr import PreferenceModule
from lit_tr.commands import main
from lit_tr.losses import DPO, AlphaDivergence
from tests.runs import fails, folder, losses


@pytest.mark.parametrize("stop", [3, pytest.param(4, marks=pytest.mark.slow), 6])
@pytest.mark.parametrize("window", [False, True])
def test_ckpt_path_last_goes_on(config, tmp_path, stop, window):
    """In the middle of the first and second epoch of 4 shuffled batches, and between them."""
    hard = ["--update=HardReferenceUpdate", "--update.every_n_steps=5", "--model.reference=WindowReference"]
    options = [f"--config={config}", *(hard if window else [])]
    main(["fit", *options, "--trainer.max_steps=9", f"--trainer.default_root_dir={tmp_path / 'whole'}"])
    main(["fit", *options, f"--trainer.max_steps={stop}"])
    main(["fit", *options, "--trainer.max_steps=9", "--ckpt_path=last"])
    assert losses(tmp_path / "run", 1) == losses(tmp_path / "whole")


def test_the_last_checkpoint_is_that_of_the_end_of_training(run):
    """Not that of the last validation, two steps before."""
    root = run("--trainer.val_check_interval=2", steps=3)
    assert loaded(root, 0)["global_step"] == 3
    run("--trainer.val_check_interval=2", "--ckpt_path=last", steps=5)
    whole = run("--trainer.val_check_interval=2", f"--trainer.default_root_dir={root}_whole", steps=5)
    assert losses(root, 1) == losses(f"{whole}_whole")


def checkpoint(root, number=0):
    return folder(root, number) / "checkpoints" / "last.ckpt"


def loaded(root, version):
    return torch.load(checkpoint(root, version), weights_only=True)


@pytest.fixture
def run(config, tmp_path):
    """Run lit-tr fit with options on top of the config; return the run's root folder."""

    def start(*options, steps=2, overlay=None):
        (tmp_path / "overlay.yaml").write_text(yaml.dump(overlay or {}))
        more = [f"--config={tmp_path / 'overlay.yaml'}"] if overlay else []
        quick = ["--trainer.limit_val_batches=0", f"--trainer.max_steps={steps}"]
        main(["fit", f"--config={config}", *more, *quick, *options])
        return tmp_path / "run"

    return start


def test_what_differs_ends_the_run_with_one_list(run, config, capsys):
    path = checkpoint(run())
    options = ["--model.loss.beta=0.7", "--model.optimizer.lr=0.5", "--update.alpha=0.25", "--data.batch_size=8"]
    error = fails(capsys, "fit", f"--config={config}", *options, "--ckpt_path=last")
    assert error.splitlines() == [
        f"lit-tr: --ckpt_path last: {path}",
        f"lit-tr: --ckpt_path {path}: the configuration and the checkpoint differ:",
        "  data.batch_size: 8 in the configuration, 4 in the checkpoint",
        "  model.loss.beta: 0.7 in the configuration, 0.1 in the checkpoint",
        "  model.optimizer.lr: 0.5 in the configuration, 0.01 in the checkpoint",
        "  update.alpha: 0.25 in the configuration, 0.5 in the checkpoint",
        "Give --on_conflict checkpoint to go on with the checkpoint's values, or --on_conflict config with those of "
        "the configuration",
    ]


def test_what_is_taken_away_or_added_differs_too(run, config, capsys):
    path = checkpoint(run(overlay={"model": {"lr_scheduler": {"class_path": "torch.optim.lr_scheduler.ConstantLR"}}}))
    options = [f"--ckpt_path={path}", "--update=null", "--model.policy.lora.r=2", "--model.reference=AdapterReference"]
    error = fails(capsys, "fit", f"--config={config}", *options)
    for line in (
        "model.lr_scheduler: None in the configuration, {'class_path': 'torch.optim.lr_scheduler.ConstantLR'",
        "model.policy.lora: {'r': 2, 'alpha': 32,",
        "model.reference: lit_tr.reference.AdapterReference in the configuration, lit_tr.reference.CopyReference in",
        "update: None in the configuration, {'class_path': 'lit_tr.SoftReferenceUpdate'",
    ):
        assert f"\n  {line}" in error


def test_defaults_and_short_names_are_no_difference(run):
    options = ["--model.loss.label_smoothing=0.0", "--model.reference=CopyReference", "--update.start_step=0"]
    root = run()
    run(*options, "--model.log_initial=null", "--ckpt_path=last", steps=3)
    assert loaded(root, 1)["global_step"] == 3


def test_another_path_to_the_same_class_is_no_difference(run):
    """A module made in Python saves the module that a class stands in, a configuration the package."""
    root = run(steps=1)
    saved = loaded(root, 0)
    assert saved["hyper_parameters"]["loss"]["class_path"] == "lit_tr.losses.DPO"
    saved["hyper_parameters"]["loss"]["class_path"] = "lit_tr.losses.dpo.DPO"
    torch.save(saved, checkpoint(root))
    run("--ckpt_path=last", steps=2)


def test_the_divergence_of_a_loss_is_saved_restored_and_compared(run, config, capsys):
    options = ["--model.loss.divergence=AlphaDivergence", "--model.loss.divergence.alpha=0.25"]
    root = run(*options)
    run(*options, "--ckpt_path=last", steps=3)
    expected = DPO(beta=0.1, divergence=AlphaDivergence(0.25))
    assert PreferenceModule.load_from_checkpoint(checkpoint(root, 1)).loss == expected
    error = fails(capsys, "fit", f"--config={config}", "--model.loss.divergence=ForwardKL", "--ckpt_path=last")
    line = "divergence: lit_tr.losses.ForwardKL in the configuration, lit_tr.losses.AlphaDivergence in the checkpoint"
    assert f"\n  model.loss.{line}\n" in error


def test_other_rows_may_be_validated_on(run):
    run("--ckpt_path=null")
    assert loaded(run("--data.val.size=4", "--ckpt_path=last", steps=3), 1)["global_step"] == 3


def test_the_side_that_wins_is_trained_with(run):
    """With one pair a step the loss is softplus(-beta * h); the same h follows from both betas."""
    root = run("--data.batch_size=1")
    options = ["--data.batch_size=1", "--ckpt_path", str(checkpoint(root)), "--model.loss.beta=0.7"]
    run(*options, "--on_conflict=checkpoint", steps=3)
    run(*options, "--on_conflict=config", steps=3)
    saved, configured = losses(root, 1)[-1], losses(root, 2)[-1]
    h = -math.log(math.expm1(float(saved))) / 0.1
    assert abs(h) > 0.01
    assert float(configured) == pytest.approx(math.log1p(math.exp(-0.7 * h)), rel=1e-4)
    kept = [loaded(root, version)["hyper_parameters"]["loss"]["init_args"]["beta"] for version in (1, 2)]
    assert kept == [0.1, 0.7]
    assert "on_conflict" not in (folder(root, 2) / "config.yaml").read_text()


def test_a_configured_learning_rate_steps_so_far(run):
    """A step of SGD is the learning rate times the gradient."""
    root = run()
    start, path = loaded(root, 0)["state_dict"], str(checkpoint(root))
    run("--ckpt_path", path, steps=3)
    run("--ckpt_path", path, "--model.optimizer.lr=0.03", "--on_conflict=config", steps=3)
    moved = 0
    for name in (name for name in start if name.startswith("policy.")):
        once, thrice = (loaded(root, version)["state_dict"][name] - start[name] for version in (1, 2))
        torch.testing.assert_close(thrice, 3 * once, rtol=1e-3, atol=1e-6)
        moved += once.abs().sum()
    assert moved > 0


def test_a_configured_schedule_goes_on_as_if_it_had_been_there_from_the_first_step(run):
    """LinearLR: lr * (0.1 + 0.9 * step / 10) after each step."""
    root = run()
    linear = {"class_path": "torch.optim.lr_scheduler.LinearLR", "init_args": {"start_factor": 0.1, "total_iters": 10}}
    overlay = {"model": {"lr_scheduler": linear}}
    run(
        "--model.optimizer.lr=0.5", "--ckpt_path", str(checkpoint(root)), "--on_conflict=config", steps=5,
        overlay=overlay,
    )  # fmt: skip
    (group,) = loaded(root, 1)["optimizer_states"][0]["param_groups"]
    assert group["initial_lr"] == 0.5
    assert group["lr"] == pytest.approx(0.5 * (0.1 + 0.9 * 5 / 10))
    run("--model.optimizer.lr=0.5", "--ckpt_path=last", steps=6, overlay=overlay)
    assert loaded(root, 2)["lr_schedulers"][0]["last_epoch"] == 6


def test_a_configured_schedule_that_goes_by_a_metric_is_refused(run, config, capsys):
    path = checkpoint(run())
    schedule = ["--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau", "--model.lr_scheduler.monitor=val/loss"]
    error = fails(capsys, "fit", f"--config={config}", f"--ckpt_path={path}", *schedule, "--on_conflict=config")
    assert "monitor" in error or "ReduceLROnPlateau goes by what was measured" in error


@pytest.mark.slow
def test_last_is_of_this_experiment(run, capsys, config):
    """Three experiments below one folder, and the newest is never that of the one that goes on."""
    root = run()
    run("--model.loss=KTO")
    run("--seed_everything=2")
    run("--model.loss.beta=0.3")
    capsys.readouterr()
    run("--ckpt_path=last", steps=3)
    said = capsys.readouterr().err
    assert f"--ckpt_path last: {checkpoint(root)}\n" in said
    assert "is of another experiment" not in said.replace("for it is of another experiment", "")
    assert "(seed_everything: 1 in the configuration, 2 in the checkpoint)" in said
    assert "(model.loss: lit_tr.losses.DPO in the configuration, lit_tr.losses.KTO in the checkpoint)" in said
    assert loaded(root, 4)["hyper_parameters"]["loss"]["init_args"]["beta"] == 0.1
    error = fails(capsys, "fit", f"--config={config}", "--model.loss=IPO", "--ckpt_path=last")
    assert f"there is no complete checkpoint of this experiment below {root}" in error


def test_an_evaluation_takes_rows_and_optimizers_of_its_own_and_no_other_loss(run, config, capsys):
    run()
    options = ["--data.val.size=4", "--data.batch_size=2", "--model.optimizer.lr=1", "--update=null"]
    main(["validate", f"--config={config}", *options, "--ckpt_path=last"])
    assert "model.loss.beta" in fails(
        capsys, "validate", f"--config={config}", "--model.loss.beta=0.7", "--ckpt_path=last"
    )


NUMPY = """
import numpy
from lightning.pytorch import Callback

class Keeps(Callback):
    def state_dict(self):
        return {"best": numpy.float64(0.5)}
"""


def test_a_numpy_scalar_is_named_at_resume_and_export(run, config, tmp_path, monkeypatch, capsys):
    (tmp_path / "keeps_numpy.py").write_text(NUMPY)
    monkeypatch.chdir(tmp_path)
    callback = {"trainer": {"callbacks": [{"class_path": "keeps_numpy.Keeps"}]}}
    root = run(overlay=callback)
    path = checkpoint(root)
    overlay = f"--config={tmp_path / 'overlay.yaml'}"
    for args in (
        ["fit", f"--config={config}", overlay, f"--ckpt_path={path}"],
        ["export", f"--checkpoint={path}", f"--output={tmp_path / 'out'}"],
    ):
        error = fails(capsys, *args)
        assert "holds a numpy" in error
        assert "x.item()" in error
        assert "not a checkpoint" not in error
    run("--weights_only=false", f"--ckpt_path={path}", overlay=callback, steps=3)
    assert len(losses(root, 1)) == 3
    assert Path(path).exists()
