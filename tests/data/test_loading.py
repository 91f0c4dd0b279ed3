from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import DistributedSampler

from lit_tr.data.loading import EpochLoader
from lit_tr.errors import UserError


class Numbers:
    """Examples that are their own indices."""

    def __init__(self, count):
        self.count = count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return index


def loaders(count, ranks, batch_size=2, items=None, **options):
    return [EpochLoader(Numbers(count), items, batch_size, list, rank, ranks, **options) for rank in range(ranks)]


def epoch(loaders):
    """The batches of the next epoch, rank by rank."""
    return [list(loader) for loader in loaders]


def together(ranks):
    """What all ranks saw, step by step."""
    return [sorted(index for batch in step for index in batch) for step in zip(*ranks, strict=True)]


@settings(deadline=None)
@example(count=1, ranks=3, size=2, shuffle=False)  # more ranks than rows
@given(count=st.integers(1, 30), ranks=st.integers(1, 4), size=st.integers(1, 5), shuffle=st.booleans())
def test_ranks_have_as_many_batches_and_each_row_once(count, ranks, size, shuffle):
    for _ in range(2):
        found = epoch(loaders(count, ranks, size, shuffle=shuffle))
        assert {len(batches) for batches in found} == {-(-count // (ranks * size))}
        assert sorted(i for batches in found for batch in batches for i in batch) == list(range(count))


def test_each_epoch_has_the_order_of_torchs_sampler():
    own = loaders(12, 2, 3, shuffle=True, seed=5)
    for number in range(3):
        for rank, loader in enumerate(own):
            sampler = DistributedSampler(range(12), 2, rank, seed=5)
            sampler.set_epoch(number)
            assert [i for batch in loader for i in batch] == list(sampler)


@settings(deadline=None)
@given(
    count=st.integers(1, 25),
    shuffle=st.booleans(),
    stops=st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2), st.integers(0, 8)), min_size=1, max_size=4),
)
def test_an_epoch_goes_on_with_other_ranks_and_no_row_is_repeated_or_left_out(count, shuffle, stops):
    """Each stop is a number of ranks, of workers (in name: a process each would be slow), and of batches."""
    order = [i for batch in EpochLoader(Numbers(count), None, 1, list, shuffle=shuffle) for i in batch]
    state, seen = {"epoch": 0, "taken": 0, "items": count}, []
    for ranks, _, batches in [*stops, (1, 0, count)]:
        own = loaders(count, ranks, shuffle=shuffle)
        for loader in own:
            loader.load_state_dict(state)
        rest = len(own[0]) - own[0].batches_taken(state)
        found = [list(islice(iter(loader), batches)) for loader in own]
        assert {len(batches_of_rank) for batches_of_rank in found} == {min(batches, rest)}
        seen += [i for step in zip(*found, strict=True) for i in sorted(sum(step, []), key=order.index)]
        assert len({tuple(loader.state_dict().items()) for loader in own}) == 1
        state = own[0].state_dict()
    assert seen == order


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_the_number_of_workers_changes_nothing(workers):
    whole = list(EpochLoader(Numbers(11), None, 2, list, shuffle=True))
    before = EpochLoader(Numbers(11), None, 2, list, shuffle=True, num_workers=workers)
    first = list(islice(iter(before), 2))
    after = EpochLoader(Numbers(11), None, 2, list, shuffle=True, num_workers=(workers + 1) % 3)
    after.load_state_dict(before.state_dict())
    assert first + list(after) == whole


def test_a_state_of_an_epochs_end_goes_on_with_the_next_one():
    one = EpochLoader(Numbers(5), None, 2, list, shuffle=True)
    _, second = list(one), list(one)
    other = EpochLoader(Numbers(5), None, 2, list, shuffle=True)
    list(other)
    again = EpochLoader(Numbers(5), None, 2, list, shuffle=True)
    again.load_state_dict(other.state_dict())
    assert list(again) == []
    assert list(again) == second


def test_other_items_within_an_epoch_are_refused():
    examples = EpochLoader(Numbers(6), None, 2, list)
    taken = iter(examples)
    next(taken)
    packs = [np.array(pack) for pack in ([0, 3], [1], [2, 4, 5])]
    with pytest.raises(UserError, match="after 2 of the epoch's 6 examples or packs, and now there are 3: rows would"):
        EpochLoader(Numbers(6), packs, 1, list).load_state_dict(examples.state_dict())
    list(taken)
    later = EpochLoader(Numbers(6), packs, 1, list)
    later.load_state_dict(examples.state_dict())
    assert list(later) == []
    assert list(later) == [[0, 3], [1], [2, 4, 5]]


def test_packs_are_shared_out_whole():
    packs = [np.array(pack) for pack in ([0, 3], [1], [2, 4, 5])]
    first, second = epoch(loaders(6, 2, 1, packs))
    assert first == [[0, 3], [2, 4, 5]]
    assert second == [[1], []]  # an empty batch is a dummy one


def test_the_random_state_of_training_stays():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert Counter(i for batch in EpochLoader(Numbers(9), None, 2, list, shuffle=True) for i in batch).total() == 9
    assert torch.equal(torch.get_rng_state(), before)
