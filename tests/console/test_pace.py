import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Timer

from lit_tr.console.pace import Pace, as_time, last_step, peak_memory


def trainer(**given):
    run = {"num_training_batches": 10, "accumulate_grad_batches": 1, "max_epochs": 2, "max_steps": -1}
    return SimpleNamespace(**{**run, "global_step": 0, "world_size": 1, "callbacks": [], **given})


@pytest.mark.parametrize(
    ("run", "last"),
    [
        ({}, 20),
        ({"accumulate_grad_batches": 3}, 8),  # 3 steps of 3 batches and one of the last
        ({"max_steps": 7}, 7),
        ({"max_steps": 70}, 20),
        ({"max_epochs": -1}, math.inf),
        ({"max_epochs": None, "max_steps": 5}, 5),
        ({"num_training_batches": math.inf}, math.inf),
        ({"num_training_batches": math.inf, "max_steps": 9}, 9),
    ],
)
def test_the_last_step_is_the_first_of_all_limits(run, last):
    assert last_step(trainer(**run)) == last


def test_the_time_left_goes_by_the_steps_since_the_start_or_the_resume():
    now = iter([100.0, 130.0])
    run = trainer(global_step=4)
    pace = Pace(run, lambda: next(now))
    run.global_step = 10  # 6 steps in 30 s, and 10 to go
    assert pace.seconds_left() == 50


def test_the_time_left_is_no_more_than_max_time_leaves(monkeypatch):
    now = iter([0.0, 10.0])
    timer = Timer({"seconds": 25})
    monkeypatch.setattr(timer, "time_remaining", lambda: 25 - 10)
    run = trainer(callbacks=[timer])
    pace = Pace(run, lambda: next(now))
    run.global_step = 5
    assert pace.seconds_left() == 15


def test_before_the_first_step_nobody_knows():
    assert Pace(trainer()).seconds_left() == math.inf
    assert as_time(math.inf) == "?"


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600 + 62, "1:01:02")])
def test_times(seconds, said):
    assert as_time(seconds) == said


def test_the_memory_of_a_process_is_more_than_what_it_just_took():
    block = torch.ones(10**7)
    assert peak_memory(block.device) > block.nbytes
