import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_tr.data.packing import BatchLayout, fill
from lit_tr.errors import BadRowError


@given(sizes=st.lists(st.integers(1, 50), max_size=60), budget=st.integers(50, 120), seed=st.integers(0, 3))
def test_packs_keep_within_the_budget_and_hold_each_example_once(sizes, budget, seed):
    packs = fill(sizes, budget, seed)
    assert sorted(i for pack in packs for i in pack) == list(range(len(sizes)))
    tokens = [sum(sizes[i] for i in pack) for pack in packs]
    assert all(0 < count <= budget for count in tokens)
    # Graham 1969: longest processing time first is within 4/3 of the best for as many packs
    assert len(packs) <= -(-4 * max(sum(sizes), 1) // (3 * budget)) + sum(2 * size > budget for size in sizes) + 1


def test_packs_are_as_few_and_as_even_as_can_be():
    assert sorted(map(sorted, fill([6, 5, 4, 3, 2, 1], 7))) == [[0, 5], [1, 4], [2, 3]]
    assert [len(pack) for pack in fill([1] * 9, 3)] == [3, 3, 3]


def test_fill_gives_the_longest_left_to_the_smallest_batch():
    # 4 | 3, then 2 to the 3 and 2 to the 4, then 1 to the 5 that is smaller than the 6
    sizes = [1, 2, 3, 4, 2]
    assert sorted(sorted(sizes[i] for i in batch) for batch in fill(sizes, 6)) == [[1, 2, 3], [2, 4]]


def test_fill_takes_one_more_batch_where_the_fewest_would_pass_the_budget():
    sizes = [6, 5, 4, 3, 2]  # 20 in all, and no two batches of 10 come out of longest-first
    assert sorted(sorted(sizes[i] for i in batch) for batch in fill(sizes, 10)) == [[2, 5], [3, 4], [6]]


def test_what_passes_the_budget_has_a_pack_of_its_own():
    assert sorted(map(list, fill([9, 2, 2], 4))) in ([[0], [1, 2]], [[0], [2, 1]])


def test_packs_of_many_examples_are_found_by_bisection(monkeypatch):
    tried = []
    filled = fill.__globals__["_fullest"]
    monkeypatch.setitem(fill.__globals__, "_fullest", lambda *args: tried.append(args[1]) or filled(*args))
    sizes = np.random.default_rng(0).integers(100, 2000, 5000)
    packs = fill(sizes, 2100)
    assert len(tried) < 25
    assert max(sizes[pack].sum() for pack in packs) <= 2100


def test_streamed_packs_come_in_random_order():
    sizes = [50] * 4 + [2] * 40 + [20] * 5
    layout, draw = BatchLayout(max_tokens=100), torch.Generator().manual_seed(0)
    orders = [layout.batches(sizes, draw) for _ in range(20)]
    fullest = [max(range(len(packs)), key=lambda i: sum(sizes[j] for j in packs[i])) for packs in orders]
    assert len(set(fullest)) > 1
    assert all(sorted(i for pack in packs for i in pack) == list(range(len(sizes))) for packs in orders)


def test_batches_in_order_and_by_length():
    assert BatchLayout(2).batches([1] * 5, None) == [[0, 1], [2, 3], [4]]
    assert BatchLayout(2, by_length=True).batches([5, 1, 4, 2, 3], None) == [[1, 3], [4, 2], [0]]


def test_an_example_past_the_budget_is_a_bad_row():
    BatchLayout(max_tokens=10).check(10)
    BatchLayout(batch_size=1).check(10**6)
    with pytest.raises(BadRowError, match="11 tokens with both responses, max_tokens 10"):
        BatchLayout(max_tokens=10).check(11)
