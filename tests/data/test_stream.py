import json
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_tr.data import Collator, Mixture, Rows
from lit_tr.data.packing import BatchLayout
from lit_tr.data.stream import RankLoader, Stream
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.errors import BadRowError, UserError

ROWS = 60


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Files of 60 rows in all, numbered from 1000; every seventh is bad."""
    folder = tmp_path_factory.mktemp("shards")
    for shard, (first, last) in enumerate([(0, 7), (7, 8), (8, 41), (41, 60)]):
        lines = [json.dumps({"n": 1000 + n, "size": n % 5 + 1}) + "\n" for n in range(first, last)]
        (folder / f"{shard}.jsonl").write_text("".join(lines))
    return folder


def process(record):
    row = record.row
    if row["n"] % 7 == 0:
        raise BadRowError("a multiple of seven", str(row["n"]))
    return [TokenizedExample([row["n"]], [1] * row["size"], [2])]


def stream(folder, rank=0, ranks=1, buffer=10, batch_size=3, max_tokens=None, most=60, source=None, **options):
    layout = BatchLayout(None if max_tokens else batch_size, max_tokens)
    source = source or Rows(str(folder / "*.jsonl"))
    return Stream(source, process, layout, Collator(), buffer, rank=rank, ranks=ranks, max_bad_rows=most, **options)


def numbers(batches):
    """The rows of each batch."""
    return [[token for token in batch.input_ids[0].tolist() if token >= 1000] for batch in batches]


GOOD = [1000 + n for n in range(ROWS) if (1000 + n) % 7]
LAYOUTS = [{"batch_size": 1}, {"batch_size": 4}, {"max_tokens": 8}, {"max_tokens": 23}]


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.integers(1, 7),
    buffer=st.integers(1, 30),
    layout=st.sampled_from(LAYOUTS),
    shuffle=st.booleans(),
    epoch=st.integers(0, 2),
)
def test_readers_take_each_row_once(shards, ranks, buffer, layout, shuffle, epoch):
    taken = []
    for rank in range(ranks):
        own = stream(shards, rank, ranks, buffer, shuffle=shuffle, seed=3, **layout)
        own.epoch = epoch
        batches = numbers(own)
        assert all(len(batch) == layout.get("batch_size", len(batch)) for batch in batches[:-1])
        taken += [number for batch in batches for number in batch]
    assert sorted(taken) == GOOD


@settings(max_examples=60, deadline=None)
@given(
    ranks=st.integers(1, 3),
    buffer=st.integers(1, 25),
    layout=st.sampled_from(LAYOUTS),
    shuffle=st.booleans(),
    stops=st.lists(st.integers(0, 9), max_size=4),
    mixed=st.booleans(),
)
def test_a_stream_goes_on_as_the_uninterrupted_one(shards, ranks, buffer, layout, shuffle, stops, mixed):
    source = None
    if mixed:
        parts = [Rows(str(shards / "[01].jsonl")), Rows(str(shards / "[23].jsonl"), "train[3:30]")]
        source = Mixture(parts, [1.0, 3.0], "all_exhausted", seed=5)

    def make():
        return stream(shards, ranks - 1, ranks, buffer, shuffle=shuffle, source=source, **layout)

    whole = numbers(make())
    resumed, state = [], make().state_dict()
    for stop in stops:
        part = make()
        part.load_state_dict(json.loads(json.dumps(state)))
        resumed += numbers(islice(part, stop))
        if stop:
            state = part.state_dict()
    last = make()
    last.load_state_dict(state)
    assert resumed + numbers(last) == whole


def test_epochs_come_in_orders_of_their_own(shards):
    one = stream(shards, buffer=20)
    first = numbers(one)
    assert numbers(one) == first
    one.epoch = 1
    assert numbers(one) != first
    assert numbers(stream(shards, buffer=20, shuffle=False, batch_size=3))[0] == GOOD[:3]


def test_batches_by_length_hold_examples_of_about_the_same_length(shards):
    one = stream(shards, buffer=50)
    one.layout = BatchLayout(5, by_length=True)
    batches = list(one)
    assert sorted(sum(numbers(batches), [])) == GOOD
    spans = [batch.lengths[: len(batch)].max() - batch.lengths[: len(batch)].min() for batch in batches]
    assert sum(span <= 1 for span in spans) >= len(spans) - 1


def test_bad_rows_are_listed_once_with_their_location_and_reason(shards, tmp_path):
    file = tmp_path / "bad" / "rows.jsonl"
    whole = [stream(shards, rank, 2, listed_in=file) for rank in (0, 1)]
    for one in whole:
        batches = iter(one)
        next(batches)
        resumed = stream(shards, one.rank, 2, listed_in=file)
        resumed.load_state_dict(one.state_dict())
        list(resumed)
    listed = [json.loads(line) for path in file.parent.iterdir() for line in path.read_text().splitlines()]
    bad = sorted((row["detail"], row["reason"]) for row in listed)
    assert bad == [(str(1000 + n), "a multiple of seven") for n in range(ROWS) if (1000 + n) % 7 == 0]
    assert next(row for row in listed if row["detail"] == "1043")["location"] == f"{shards}/3.jsonl, row 2"


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("most", [0, 2, 0.1])
def test_too_many_bad_rows_end_the_run(shards, workers, most):
    loader = RankLoader(stream(shards, most=most), workers, None)
    message = r"^\d+ of \d+ rows are bad .*\S+\d.jsonl, row \d+: a multiple of seven \(10\d\d\)\. Fix them"
    with pytest.raises(UserError, match=message):
        list(loader)


def taken(loader, batches):
    """Take some batches; return their rows."""
    return numbers(list(islice(loader, batches)))


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_loader_goes_on_after_what_was_taken(shards, workers):
    def loader():
        return RankLoader(stream(shards, buffer=7), workers, None)

    whole = loader()
    epochs = [taken(whole, 99) for _ in range(2)]
    assert sorted(sum(epochs[0], [])) == sorted(sum(epochs[1], [])) == GOOD
    assert epochs[0] != epochs[1]
    state, seen = None, []
    for stop in (1, 6, 3, 99, 4, 99):  # over the end of the first epoch
        part = loader()
        if state is not None:
            part.load_state_dict(json.loads(json.dumps(state)) if workers == 0 else state)
        seen += taken(part, stop) or taken(part, stop)  # at the end of an epoch the rest of it is empty
        state = part.state_dict()
    assert seen == sum(epochs, [])


def test_another_number_of_workers_is_refused(shards):
    loader = RankLoader(stream(shards), 0, None)
    taken(loader, 2)
    with pytest.raises(UserError, match="1 ranks with 0 workers each, and now there are 1 with 2: go on with as many"):
        RankLoader(stream(shards), 2, None).load_state_dict(loader.state_dict())
