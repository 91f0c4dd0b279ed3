import time

import pytest
import torch

from lit_tr.speed import Speed

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that is set by hand."""
    now = [100.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def test_rates_are_of_all_batches_since_the_reset_without_evaluations(clock):
    speed = Speed()
    speed.add(pairs=1000)  # forgotten
    speed.reset(CPU)
    clock[0] += 3
    speed.add(pairs=4, tokens=100)
    clock[0] += 1
    speed.pause(CPU)
    clock[0] += 50  # a validation
    speed.go_on(CPU)
    clock[0] += 1
    speed.add(pairs=6, tokens=150)
    assert speed.rates(CPU) == {"pairs_per_second": 2.0, "tokens_per_second": 50.0}
    clock[0] += 5
    assert speed.rates(CPU)["pairs_per_second"] == 1.0  # nothing was reset
    speed.reset(CPU)
    clock[0] += 2
    speed.add(pairs=1)
    assert speed.rates(CPU) == {"pairs_per_second": 0.5}
