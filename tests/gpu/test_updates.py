"""Updates of references on a CUDA device; their functions run on any."""

import pytest
import torch

from lit_tr.reference.averaging import soft_update_tensors
from lit_tr.reference.lowrank import averages, iterated
from lit_tr.reference.precision import LowOrderBits
from tests.reference.test_lowrank import check_hard_cases, random

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def test_averages_of_hard_cases_are_near_the_best_of_the_rank():
    check_hard_cases(None, excess=0.04, device="cuda")


def test_averages_wait_for_nothing():
    draw = torch.Generator().manual_seed(0)
    sides = ([random((96, 80), rank, 2.0, draw)] for rank in (16, 32))
    policy, reference = ([type(one)(one.a.cuda(), one.b.cuda(), one.scaling) for one in side] for side in sides)
    batches = [(policy, reference, 0.6)]
    averages(batches, iterated)
    torch.cuda.set_sync_debug_mode("error")
    try:
        averages(batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_low_order_bits_are_those_of_a_cpu():
    start, goal = (torch.randn(300, 1000).bfloat16() for _ in range(2))
    moved = []
    for device in ("cpu", "cuda"):
        reference, average = {"w": start.to(device, copy=True)}, LowOrderBits()
        for _ in range(5):
            soft_update_tensors({"w": goal.to(device)}, reference, 0.01, average)
        moved.append((reference["w"].cpu(), average.of("w").cpu()))
    (upper, lower), (ours, ours_lower) = moved
    values = [(one.view(torch.int16).int() << 16) + low for one, low in ((upper, lower), (ours, ours_lower))]
    torch.testing.assert_close(*(one.view(torch.float32) for one in values), rtol=1e-6, atol=0.0)
