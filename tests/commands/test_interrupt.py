"""Runs of `lit-tr` in processes of their own, which are stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests import processes
from tests.processes import PATIENCE, ended
from tests.runs import folder, metrics

pytestmark = pytest.mark.slow


def wait_for(root, pattern="20*/metrics.csv", seconds=PATIENCE):
    deadline = time.time() + seconds
    while not list(root.glob(pattern)):
        assert time.time() < deadline, f"no {pattern} came in {root}"
        time.sleep(0.05)


@pytest.fixture
def start():
    """Start processes of `lit-tr fit`, which end with the test."""
    started = []

    def run(config, *options, **variables):
        started.append(processes.lit_tr("fit", f"--config={config}", *options, environment=variables))
        return started[-1]

    yield run
    for process in started:
        process.kill()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_leaves_a_checkpoint_of_a_whole_step_that_resumes_exactly(start, config, tmp_path, number, code):
    process = start(config, "--trainer.accumulate_grad_batches=3", "--trainer.max_steps=100000")
    wait_for(tmp_path / "run")
    os.kill(process.pid, number)
    assert ended(process) == [code]
    checkpoint = torch.load(next((tmp_path / "run").rglob("last.ckpt")), weights_only=True)
    steps = checkpoint["global_step"]
    assert steps > 0
    more = (config, "--trainer.accumulate_grad_batches=3", f"--trainer.max_steps={steps + 2}")
    both = start(*more, "--ckpt_path=last"), start(*more, f"--trainer.default_root_dir={tmp_path / 'whole'}")
    assert ended(*both) == [0, 0]
    resumed, whole = metrics(tmp_path / "run", 1), metrics(tmp_path / "whole")
    assert int(resumed[-1]["step"]) == steps + 1
    ours, theirs = (
        {int(row["step"]): row["train/loss"] for row in rows if row["train/loss"]} for rows in (resumed, whole)
    )
    assert all(theirs[step] == loss for step, loss in ours.items())


def test_a_killed_run_goes_on_from_its_last_checkpoint_as_if_it_had_not_been(start, config, tmp_path):
    content = yaml.safe_load(Path(config).read_text())
    saved = {"save_last": True, "every_n_train_steps": 7, "dirpath": str(tmp_path / "killed")}
    callbacks = [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": saved}]
    content["trainer"] |= {"max_steps": 100000, "callbacks": callbacks}
    content["model"]["policy"]["lora"] = {"r": 4, "dropout": 0.1}
    content["model"]["reference"] = "lit_tr.reference.AdapterReference"
    Path(config).write_text(yaml.dump(content))
    process = start(config)
    wait_for(tmp_path / "killed", "last.ckpt")
    time.sleep(0.5)
    process.kill()
    assert ended(process) == [-signal.SIGKILL]
    path = tmp_path / "killed" / "last.ckpt"
    steps = torch.load(path, weights_only=True)["global_step"]
    assert steps > 0
    more = f"--trainer.max_steps={steps + 20}"
    assert ended(start(config, more, f"--ckpt_path={path}")) == [0]
    resumed = torch.load(path, weights_only=True)
    saved["dirpath"] = str(tmp_path / "whole")
    Path(config).write_text(yaml.dump(content))
    assert ended(start(config, more)) == [0]
    whole = torch.load(tmp_path / "whole" / "last.ckpt", weights_only=True)
    assert resumed["global_step"] == whole["global_step"] == steps + 14
    for name, tensor in whole["state_dict"].items():
        assert torch.equal(tensor, resumed["state_dict"][name]), name
    assert resumed["callbacks"].keys() == whole["callbacks"].keys()


def test_sigterm_ends_a_long_validation_too(start, config, tmp_path):
    options = ("--data.val.init_args.size=20000", "--trainer.max_steps=100000", "--trainer.num_sanity_val_steps=0")
    process = start(config, *options, "--trainer.val_check_interval=2")
    wait_for(tmp_path / "run")
    time.sleep(2)  # two steps are over
    os.kill(process.pid, signal.SIGTERM)
    assert ended(process) == [143]
    assert torch.load(next((tmp_path / "run").rglob("last.ckpt")), weights_only=True)["global_step"] == 2


TWO_RANKS = ("--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accumulate_grad_batches=2")


def same_weights(ours, theirs):
    ours, theirs = (torch.load(path, weights_only=True) for path in (ours, theirs))
    assert ours["global_step"] == theirs["global_step"]
    assert ours["state_dict"].keys() == theirs["state_dict"].keys()
    return all(torch.equal(tensor, theirs["state_dict"][name]) for name, tensor in ours["state_dict"].items())


def test_sigterm_at_one_rank_ends_both_at_a_step_and_the_run_goes_on_exactly(config, tmp_path):
    command = [sys.executable, "-m", "lit_tr", "fit", f"--config={config}", *TWO_RANKS]  # it starts the second itself
    with subprocess.Popen(
        [*command, "--trainer.max_steps=100000"], env={**os.environ, "OMP_NUM_THREADS": "1"}
    ) as first:
        try:
            wait_for(tmp_path / "run")
            first.send_signal(signal.SIGTERM)
            assert first.wait(PATIENCE) == 143
        finally:
            first.kill()
    last = next((tmp_path / "run").rglob("last.ckpt"))
    steps = torch.load(last, weights_only=True)["global_step"]
    assert steps > 0
    for option in ("--ckpt_path=last", f"--trainer.default_root_dir={tmp_path / 'whole'}"):
        args = ("fit", f"--config={config}", *TWO_RANKS, f"--trainer.max_steps={steps + 3}", option)
        assert ended(*(processes.lit_tr(*args, environment=rank) for rank in processes.of_ranks(2))) == [0, 0]
    resumed = folder(tmp_path / "run", 1) / "checkpoints" / "last.ckpt"
    assert same_weights(resumed, next((tmp_path / "whole").rglob("last.ckpt")))


@pytest.fixture
def slurm(start, tmp_path):
    """Start a job of two tasks as srun would; a stand-in for scontrol writes down what it is asked."""
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "asked"}\n')
    scontrol.chmod(0o755)

    def srun(config, *options):
        job = {"SLURM_JOB_ID": "12345", "SLURM_JOB_NAME": "align", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
        job |= {"SLURM_NODEID": "0", "MASTER_ADDR": "127.0.0.1", "PATH": f"{scontrol.parent}:{os.environ['PATH']}"}
        return [
            start(config, *TWO_RANKS, *options, **job, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
            for rank in (0, 1)
        ]

    return srun


@pytest.mark.parametrize("requeue_signal", [signal.SIGUSR1, signal.SIGTERM])
def test_a_preempted_slurm_job_saves_is_queued_again_and_goes_on_exactly(config, tmp_path, slurm, requeue_signal):
    content = yaml.safe_load(Path(config).read_text())
    plugin = {"class_path": "lightning.pytorch.plugins.environments.SLURMEnvironment"}
    content["trainer"]["plugins"] = [{**plugin, "init_args": {"requeue_signal": requeue_signal.name}}]
    Path(config).write_text(yaml.dump(content))
    tasks = slurm(config, "--trainer.max_steps=100000")
    wait_for(tmp_path / "run/slurm-12345")
    os.kill(tasks[1].pid, requeue_signal)
    wait_for(tmp_path, "asked")
    time.sleep(1)
    assert (tmp_path / "asked").read_text() == "requeue 12345\n"
    for task in tasks:  # as SLURM ends a job that it queues again
        task.kill()
    ended(*tasks)
    steps = torch.load(tmp_path / "run/slurm-12345/hpc_ckpt_1.ckpt", weights_only=True)["global_step"]
    assert steps > 0
    for root in ("run", "whole"):  # the same command, and a run that nothing disturbs
        options = (f"--trainer.max_steps={steps + 3}", f"--trainer.default_root_dir={tmp_path / root}")
        assert ended(*slurm(config, *options)) == [0, 0]
    resumed, whole = (
        max((tmp_path / root).rglob(f"*step={steps + 3}*.ckpt"), key=lambda path: path.stat().st_mtime)
        for root in ("run", "whole")
    )
    assert same_weights(resumed, whole)
    again = max((tmp_path / "run").rglob("metrics.csv"), key=lambda path: path.stat().st_mtime)
    assert again.read_text().count("\n") > steps  # its curves begin at the first step
