import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lit_tr.data.packing import BatchLayout
from lit_tr.planning.answers import traffic
from lit_tr.planning.dry_run import Step
from lit_tr.planning.plan import Plan, Run
from lit_tr.planning.ranks import HOP, NETWORK_HOP, Network, Traffic, Unit, scaled, waits
from lit_tr.policy.loading import LoRA, PretrainedPolicy
from lit_tr.reference import AdapterReference, CopyReference

STEP = Step(activations=0, logits=0, gradients=0, forward=10, flops=30)
FAST, SLOW = Network(link=1e12, network=1e12), Network(link=1e3, network=1e3)


def test_a_gather_takes_the_slower_of_link_and_cards_and_a_latency_for_each_hop():
    network = Network(link=100.0, network=10.0, node=4)
    assert network.seconds(1000, 1) == 0
    assert network.seconds(1000, 2) == pytest.approx(500 / 100 + HOP)
    assert network.seconds(1000, 8) == pytest.approx(875 / (4 * 10) + 6 * HOP + NETWORK_HOP)
    assert Network(100.0, 50.0, 4).seconds(1000, 8) == pytest.approx(875 / 100 + 6 * HOP + NETWORK_HOP)


def test_ddp_sends_gradients_once_a_step_behind_the_backward_pass():
    sends = Traffic([], Unit(0, 1000), batches=4)
    assert sends.sent(4) == 2 * 750
    hidden = scaled(STEP, sends, 1.0, 10.0, FAST, 4)
    assert (hidden.computing, hidden.sending) == (4 * (1 + 1 + 2), 0)
    seen = scaled(STEP, sends, 0.0, 1e4, SLOW, 4)
    assert seen.sending == pytest.approx(2 * 750 / 1e3 - 20 / 1e4, rel=1e-3)


def test_fsdp_gathers_for_each_pass_of_each_batch():
    sends = Traffic([Unit(100, 40)] * 3, Unit(10, 4), passes=3, batches=2)
    assert sends.sent(2) == 2 * (3 * (300 + 10) + 3 * 40 + 4) / 2
    hidden = scaled(STEP, sends, 1.0, 1e-3, FAST, 2)
    assert hidden.sending < 1e-3 * hidden.computing
    seen = scaled(
        STEP, sends, 1.0, 1e12, SLOW, 2
    )  # nothing is computed that could hide it; the first layer comes early
    assert seen.sending == pytest.approx((sends.sent(2) + 2 * 3 * 100 / 2) / 1e3, rel=1e-2)


def test_equal_batches_wait_for_none_and_unequal_ones_for_the_longest():
    one = BatchLayout(batch_size=1)
    assert waits([100] * 10, one, 1, 8) == 0
    few, many = (waits([100, 200], one, 1, devices) for devices in (2, 64))
    assert many == pytest.approx(200 / 150 - 1, abs=0.03)
    assert 0 < few < many
    # the most of 64 sums of 16 lengths is 2.4 standard deviations of 50 / 4 above their mean, of 150
    assert waits([100, 200], one, 16, 64) == pytest.approx(2.4 * 50 / 4 / 150, rel=0.1)
    assert waits([100, 200], BatchLayout(max_tokens=2000), 1, 64) < many / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["DDP, LoRA", "DDP, full", "FSDP2, LoRA", "FSDP2, full", "FSDP2, LoRA on NF4"])
def test_two_processes_send_what_is_planned(name, tmp_path, llama_dir):
    command = [sys.executable, "-W", "ignore", str(Path(__file__).parent / "collectives.py"), "--worker", name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command += ["--model", llama_dir, "--steps", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr[-2000:]
    real = json.loads(next(line for line in ended.stdout.splitlines() if line.startswith("{")))["bytes"]
    lora = LoRA(r=16) if "LoRA" in name else None
    source = PretrainedPolicy(llama_dir, lora=lora, quantize="nf4" if "NF4" in name else None)
    reference = AdapterReference() if lora else CopyReference()
    run = Run(
        *(source, {"": (reference, None)}, torch.optim.SGD),
        alpha=0.5, devices=2, sharded="FSDP2" in name, cpu=True,
    )  # fmt: skip
    assert real == pytest.approx(traffic(Plan(run)).sent(2), rel=2e-3)
