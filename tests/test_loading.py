from types import SimpleNamespace

import pytest
import torch
from lit_tr.lookahead import _may_validate, batches_of_steps, training_batches
from torchdata.stateful_dataloader import StatefulDataLoader

from lit_tr.data.sampling import ResumableSampler


def at(batch_idx, **options):
    """A trainer with the batch of an index in hand: 23 an epoch, steps of 3."""
    loop = SimpleNamespace(batch_idx=batch_idx, total_batch_idx=23 + batch_idx)
    known = {"num_training_batches": 23, "accumulate_grad_batches": 3, "callbacks": [], "check_val_every_n_epoch": 1}
    return SimpleNamespace(fit_loop=loop, **{**known, **options})


@pytest.mark.parametrize(
    ("batch_idx", "steps", "count"),
    [
        (0, 5, 15),
        (15, 5, 14),  # 3 + 3 + 2 to the end of the epoch, 3 + 3
        (21, 1, 2),
        (22, 2, 4),  # 1 of a step that began before, 3
        (0, 17, 49),  # 23 + 23 are 8 + 8 steps, 3
    ],
)
def test_batches_of_steps(batch_idx, steps, count):
    assert batches_of_steps(at(batch_idx), steps) == count


@pytest.mark.parametrize(
    ("batch_idx", "count", "options", "expected"),
    [
        (0, 6, {}, False),
        (0, 7, {}, True),  # behind batch 7
        (7, 6, {}, False),  # 8 to 13
        (21, 8, {}, False),  # 22, 23, 1 to 6
        (21, 9, {}, True),
        (0, 4, {"check_val_every_n_epoch": None}, False),  # 24 to 27 of the run
        (0, 5, {"check_val_every_n_epoch": None}, True),  # 28
        (0, 1, {"_val_check_time_interval": 60}, True),
    ],
)
def test_validation_is_foreseen(batch_idx, count, options, expected):
    assert _may_validate(at(batch_idx, val_check_batch=7, **options), count) is expected


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("limit", "taken"), [(5, 1), (5, 3), (5, 5), (4, 4), (4, 2)])
def test_training_batches_are_those_that_come(limit, taken, workers, monkeypatch):
    """5 batches an epoch, or 4 of them; three epochs from the batch in hand on, and the loader stays where it is."""
    monkeypatch.setattr("lit_tr.lookahead._placed", lambda trainer, batch: batch)

    def epochs():
        rows = torch.arange(10)
        loader = StatefulDataLoader(rows, 2, sampler=ResumableSampler(rows, 1, 0, seed=4), num_workers=workers)
        for _ in range(4):
            for _, batch in zip(range(limit), loader, strict=False):
                yield loader, batch.tolist()

    expected = [batch for _, batch in epochs()]
    coming = epochs()
    for _ in range(taken):
        loader, batch = next(coming)
    count = 3 * limit - taken + 1
    trainer = at(taken - 1, num_training_batches=limit, train_dataloader=loader)
    ahead = list(training_batches(trainer, torch.tensor(batch), count))
    assert [batch.tolist() for batch in ahead] == expected[taken - 1 : 3 * limit]
    assert [batch for _, batch in coming] == expected[taken:]
