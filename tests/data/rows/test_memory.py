import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import datasets
import pandas
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader
from torch.utils.data import IterableDataset as TorchIterable

from lit_tr.data.rows import Mixture, Objects, Rows, as_source
from lit_tr.errors import UserError
from tests.data.rows.stops import assert_goes_on

ROWS = [{"prompt": f"p{i}", "chosen": [{"role": "assistant", "content": "é" * i}], "score": i / 2} for i in range(40)]


class Again:
    def __iter__(self):
        return iter(ROWS)


def stream(shards=4):
    return datasets.Dataset.from_list(ROWS).to_iterable_dataset(num_shards=shards)


KINDS = {
    "list": lambda: ROWS,
    "tuple": lambda: tuple(ROWS),
    "Dataset": lambda: datasets.Dataset.from_list(ROWS),
    "selected Dataset": lambda: datasets.Dataset.from_list(ROWS[::-1]).select(range(39, -1, -1)),
    "DatasetDict": lambda: datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS)),
    "dict of lists": lambda: {"train": ROWS, "test": []},
    "pandas": lambda: pandas.DataFrame(ROWS),
    "pandas with an index": lambda: pandas.DataFrame(ROWS[:1] + ROWS).drop(index=0),
    "Arrow table": lambda: pyarrow.Table.from_pylist(ROWS),
    "IterableDataset": stream,
    "IterableDatasetDict": lambda: datasets.IterableDatasetDict(train=stream()),
    "generated IterableDataset": lambda: datasets.IterableDataset.from_generator(lambda: iter(ROWS)),
    "mapped IterableDataset": lambda: stream().map(lambda rows: rows, batched=True, batch_size=7),
    "function": lambda: lambda: iter(ROWS),
    "function of a list": lambda: lambda: ROWS,
    "iterable": Again,
}


def rows_of(cursor):
    return [record.row for record in cursor]


@pytest.mark.parametrize("name", KINDS)
def test_the_rows_are_all_there(name):
    source = as_source(KINDS[name]())
    assert rows_of(source.records()) == ROWS
    assert rows_of(source.records()) == ROWS
    assert [location.rpartition(", row ")[2] for location, _ in source.rows()] == [str(i) for i in range(40)]


def shuffled():
    return stream().shuffle(seed=3, buffer_size=8)


SOURCES = {name: as_source(make()) for name, make in KINDS.items()} | {
    "shuffled IterableDataset": as_source(shuffled()),
    "mixed IterableDataset": as_source(datasets.interleave_datasets([shuffled(), stream()], [0.5, 0.5], seed=1)),
    "Mixture": Mixture([ROWS[:9], stream(), lambda: iter(ROWS)], [1.0, 2.0, 1.0], "all_exhausted"),
}


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from(sorted(SOURCES)),
    stops=st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=5),
    order=st.none() | st.integers(0, 3),
)
def test_a_cursor_goes_on_from_any_state_and_passes_over_what_it_would_read(name, stops, order):
    assert_goes_on(SOURCES[name], stops, order, lambda record: record, goes_on_at_end=False)


def test_an_order_is_of_rows_or_of_shards():
    orders = [rows_of(as_source(ROWS).records(order)) for order in (None, 1, 1, 2)]
    assert orders[0] != orders[1] == orders[2] != orders[3]
    assert sorted(orders[1], key=lambda row: row["score"]) == ROWS
    sharded = rows_of(as_source(stream()).records(5))
    assert sharded != ROWS
    assert sorted(sharded, key=lambda row: row["score"]) == ROWS


@pytest.mark.parametrize("name", ["list", "Dataset", "pandas", "IterableDataset"])
def test_cursors_of_one_object_do_not_meet(name):
    source = as_source(KINDS[name]())
    first, second = source.records(), source.records()
    assert [next(first).row for _ in range(3)] == [next(second).row for _ in range(3)] == ROWS[:3]
    assert rows_of(first) == rows_of(second) == ROWS[3:]


class Worker(TorchIterable):
    """Reads a source in a worker."""

    def __init__(self, source):
        self.source = source

    def __iter__(self):
        return (record.row["prompt"] for record in self.source.records())


@pytest.mark.parametrize("source", [as_source(stream()), as_source(shuffled()), as_source(pandas.DataFrame(ROWS))])
def test_every_worker_reads_all_rows(source):
    found = list(DataLoader(Worker(source), batch_size=None, num_workers=2, multiprocessing_context="fork"))
    assert sorted(found) == sorted(2 * [row["prompt"] for row in ROWS])


def test_forked_processes_read_with_cursors_of_their_own():
    source = as_source(datasets.Dataset.from_list(ROWS))
    cursor = source.records()
    next(cursor)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        assert [*pool.map(_count, [source, source])] == [40, 40]
    assert len(rows_of(cursor)) == 39


def _count(source):
    return len(rows_of(source.records()))


@pytest.mark.parametrize("name", ["list", "Dataset", "pandas", "Arrow table", "IterableDataset"])
def test_a_source_is_pickled_with_its_data(name):
    source = pickle.loads(pickle.dumps(as_source(KINDS[name]())))
    assert rows_of(source.records()) == ROWS


def test_paths_and_sources(write_rows):
    path = write_rows(ROWS)
    assert rows_of(as_source(path).records()) == rows_of(as_source(Path(path), "validation").records()) == ROWS
    assert as_source("someone/pairs", "test") == Rows("someone/pairs", "test")
    source = Rows(path)
    assert as_source(source) is source


def test_a_folder_and_a_dict_have_the_split_that_is_asked_for(tmp_path):
    for name, count in (("train", 3), ("test", 2)):
        datasets.Dataset.from_list(ROWS[:count]).to_parquet(tmp_path / f"{name}.parquet")
    assert len(rows_of(as_source(tmp_path, "test").records())) == 2
    assert len(rows_of(as_source({"train": ROWS, "test": ROWS[:2]}, "test").records())) == 2
    assert len(rows_of(as_source(ROWS, "test").records())) == 40


def test_missing_values_of_a_frame_are_none():
    frame = pandas.DataFrame({"prompt": ["a", None], "score": [1.0, float("nan")]})
    assert rows_of(as_source(frame).records()) == [{"prompt": "a", "score": 1.0}, {"prompt": None, "score": None}]


def test_polars():
    polars = pytest.importorskip("polars")
    assert rows_of(as_source(polars.DataFrame(ROWS)).records(1)) == rows_of(as_source(ROWS).records(1))
    first, again, other = (as_source(polars.DataFrame(rows)).fingerprint() for rows in (ROWS, ROWS, ROWS[1:]))
    assert first == again != other


def test_rows_of_any_kind_go_to_a_format_of_their_own():
    source = Objects([("p", "c", "r")], format=tuple)
    assert next(source.records()).row == ("p", "c", "r")
    assert next(source.records()).conversion.format is tuple


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (iter(ROWS), "list_iterator: can be read only once; give the function that makes it, without calling it"),
        ((row for row in ROWS), "generator: can be read only once"),
        (3, "int: no rows; give a path, a list of dicts, a data set, a frame, or a function"),
        (None, "NoneType: no rows"),
        (["a"], "list of str: without a format each row must be a dict of columns"),
        (b"abc", "bytes of int: without a format each row must be a dict"),
        ({"prompt": ["a"]}, r"no split 'train' in the dict: its keys are \['prompt'\]; give Objects"),
        (pandas.DataFrame({"a": ["x", 1]}), "DataFrame in memory: a column has values of several kinds"),
    ],
)
def test_what_has_no_rows_is_refused(data, message):
    with pytest.raises(UserError, match=message):
        as_source(data)


def test_a_split_that_is_not_there():
    data = datasets.DatasetDict(train=datasets.Dataset.from_list(ROWS), test=datasets.Dataset.from_list(ROWS))
    with pytest.raises(UserError, match=r"no split 'dev' in the DatasetDict: its keys are \['train', 'test'\]"):
        Objects(data, "dev")
    with pytest.raises(UserError, match="there are no splits in it, so no split 'test'"):
        Objects(ROWS, "test")


def test_a_function_that_wants_arguments():
    with pytest.raises(UserError, match="function in memory: the function must take no argument and return an iter"):
        as_source(lambda count: iter(ROWS)).records()
    with pytest.raises(UserError, match="'int' object is not iterable"):
        as_source(lambda: 3).records()
