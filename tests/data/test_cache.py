import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lit_tr.data.sampling import EvaluationSampler, ResumableSampler
from lit_tr.errors import UserError


@given(size=st.integers(1, 20), ranks=st.integers(1, 4), seed=st.integers(0, 3))
def test_ranks_see_each_row_once_an_epoch_but_for_evening_out(size, ranks, seed):
    samplers = [ResumableSampler(range(size), ranks, rank, seed=seed) for rank in range(ranks)]
    for _ in range(2):
        shares = [list(sampler) for sampler in samplers]
        assert len({len(share) for share in shares}) == 1
        seen = [index for share in shares for index in share]
        assert set(seen) == set(range(size))
        assert len(seen) - size < ranks


@example(size=2, stops=[1, 0, 1], shuffle=False)  # a resume that is stopped before its first row
@given(size=st.integers(1, 12), stops=st.lists(st.integers(0, 30), min_size=1, max_size=3), shuffle=st.booleans())
def test_resumed_is_uninterrupted_also_a_second_and_third_time(size, stops, shuffle):
    def endless(sampler):
        while True:
            sampler.set_epoch(99)  # what Lightning says does not matter
            yield from sampler

    def take(sampler, count):
        return [index for _, index in zip(range(count), endless(sampler), strict=False)]

    whole = take(ResumableSampler(range(size), 1, 0, shuffle=shuffle), sum(stops))
    resumed, state = [], None
    for stop in stops:
        sampler = ResumableSampler(range(size), 1, 0, shuffle=shuffle)
        if state:
            sampler.load_state_dict(state)
        resumed += take(sampler, stop)
        state = sampler.state_dict()
    assert resumed == whole


@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 1), (3, 2)])
def test_another_number_of_ranks_goes_on_at_an_epochs_end_and_not_within_one(before, now):
    sampler = ResumableSampler(range(11), before, 0)
    order = iter(sampler)
    next(order)
    with pytest.raises(UserError, match=f"saved on {before} ranks .* now there are {now}"):
        ResumableSampler(range(11), now, 0).load_state_dict(sampler.state_dict())
    list(order)
    others = [ResumableSampler(range(11), now, rank) for rank in range(now)]
    for other in others:
        other.load_state_dict(sampler.state_dict())
        assert list(other) == []
    assert {index for other in others for index in other} == set(range(11))
    assert {other.epoch for other in others} == {1}


@example(size=1, ranks=4)
@given(size=st.integers(1, 20), ranks=st.integers(1, 5))
def test_evaluated_rows_come_once_in_their_order_and_as_many_indices_to_each_rank(size, ranks):
    shards = [list(EvaluationSampler(range(size), ranks, rank)) for rank in range(ranks)]
    assert {len(shard) for shard in shards} == {-(-size // ranks)}
    rows = [[index for index in shard if index != size] for shard in shards]  # `size` is no row
    assert rows == [list(range(rank, size, ranks)) for rank in range(ranks)]
    assert all(len(shard) - len(own) <= 1 for shard, own in zip(shards, rows, strict=True))
