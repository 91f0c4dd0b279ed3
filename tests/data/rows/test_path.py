import gzip
import json
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import datasets
import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_tr.data import Rows
from lit_tr.errors import UserError
from tests.data.rows.stops import assert_goes_on

PAIRS = [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(5)]


@pytest.fixture
def shards(tmp_path):
    """Files of 0, 1, 3 and 1 rows, in folders."""
    for name, part in {"a/0": [], "a/1": PAIRS[:1], "b/2": PAIRS[1:4], "b/3": PAIRS[4:]}.items():
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
    return tmp_path


def prompts(source):
    return [row["prompt"] for _, row in source.rows()]


def test_the_files_of_a_pattern_come_one_after_the_other(shards):
    assert prompts(Rows(f"{shards}/*/*.jsonl")) == ["p0", "p1", "p2", "p3", "p4"]
    assert prompts(Rows(f"{shards}/b/?.jsonl")) == ["p1", "p2", "p3", "p4"]


@given(st.integers(-7, 7) | st.none(), st.integers(-7, 7) | st.none(), st.booleans())
def test_a_slice_is_that_of_a_list_over_all_files(tmp_path_factory, start, stop, one_file):
    folder = tmp_path_factory.mktemp("slices")
    for shard, part in enumerate([PAIRS] if one_file else [PAIRS[:1], [], PAIRS[1:4], PAIRS[4:]]):
        (folder / f"{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    split = f"train[{'' if start is None else start}:{'' if stop is None else stop}]"
    assert prompts(Rows(f"{folder}/*.jsonl", split)) == [row["prompt"] for row in PAIRS[start:stop]]


def test_percentages(shards):
    assert prompts(Rows(f"{shards}/*/*.jsonl", "train[:40%]")) == ["p0", "p1"]
    assert prompts(Rows(f"{shards}/*/*.jsonl", "train[40%:]")) == ["p2", "p3", "p4"]


def test_a_folder_has_the_splits_that_datasets_finds(tmp_path):
    for name, part in {"train-0": PAIRS[:2], "train-1": PAIRS[2:4], "test": PAIRS[4:]}.items():
        datasets.Dataset.from_list(part).to_parquet(tmp_path / f"{name}.parquet")
    assert prompts(Rows(str(tmp_path))) == ["p0", "p1", "p2", "p3"]
    assert prompts(Rows(str(tmp_path), "test")) == ["p4"]
    with pytest.raises(UserError, match="there is no split 'dev'; known are test, train"):
        prompts(Rows(str(tmp_path), "dev"))


def test_urls_are_read_where_they_lie():
    system = fsspec.filesystem("memory")
    for shard in (0, 1):
        with system.open(f"/bucket/{shard}.jsonl", "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in PAIRS[shard::2])
    assert prompts(Rows("memory://bucket/*.jsonl")) == ["p0", "p2", "p4", "p1", "p3"]
    assert prompts(Rows("memory://bucket/1.jsonl")) == ["p1", "p3"]
    with pytest.raises(UserError, match="memory://bucket/none.jsonl: there is no such file"):
        prompts(Rows("memory://bucket/none.jsonl"))
    with pytest.raises(UserError, match="nowhere://bucket/a.jsonl: cannot be reached"):
        prompts(Rows("nowhere://bucket/a.jsonl"))


def test_shares_part_the_rows_by_what_they_say(write_rows):
    path = write_rows([{"prompt": f"p{i % 50}", "chosen": f"c{i % 200}", "rejected": "r"} for i in range(400)])
    low, high = (list(Rows(path, share=share).rows()) for share in ((0, 0.25), (0.25, 1)))
    assert len(low) + len(high) == 400
    assert 60 < len(low) < 140
    assert not {row["chosen"] for _, row in low} & {row["chosen"] for _, row in high}
    by_prompt = [prompts(Rows(path, share=share, share_by="prompt")) for share in ((0, 0.25), (0.25, 1))]
    assert not set(by_prompt[0]) & set(by_prompt[1])
    assert set(by_prompt[0]) | set(by_prompt[1]) == {f"p{i}" for i in range(50)}
    assert prompts(Rows(path, share=(0, 0.25), share_seed=1)) != [row["prompt"] for _, row in low]


def test_share_by_names_a_column(write_rows):
    path = write_rows([{"question": f"p{i}", "chosen": "c", "rejected": "r"} for i in range(5)])
    with pytest.raises(UserError, match=r"no column 'prompt'; known are \['chosen', 'question', 'rejected'\]"):
        Rows(path, share=(0, 0.5), share_by="prompt").records()


def test_a_row_without_the_column_of_share_by_is_a_bad_row(write_rows):
    path = write_rows([{"chosen": "c"}, *PAIRS, {"prompt": None}])
    kinds = [type(record.row).__name__ for record in Rows(path, share=(0, 0.999), share_by="prompt").records()]
    assert kinds == ["BadRowError", *5 * ["dict"], "dict"]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Files of every kind, of 7 rows each and an empty one, with bad lines in some."""
    folder = tmp_path_factory.mktemp("kinds")
    table = datasets.Dataset.from_list([{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": "r"} for i in range(7)])
    table.to_parquet(folder / "a.parquet")
    table.to_csv(folder / "b.csv", index=False)
    table.to_json(folder / "c.jsonl")
    table.to_json(folder / "d.json", lines=False)
    (folder / "e.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": 1}\n\nbad\n[1]\n{"prompt": 2}'))
    (folder / "f.jsonl").write_text("")
    table.save_to_disk(folder / "g")
    (folder / "g" / "data-00000-of-00001.arrow").rename(folder / "g.arrow")
    return folder


@settings(max_examples=150, deadline=None)
@given(
    stops=st.lists(st.tuples(st.booleans(), st.integers(0, 20)), max_size=6),
    order=st.none() | st.integers(0, 3),
    arguments=st.sampled_from([{}, {"split": "train[3:25]"}, {"share": (0, 0.5)}, {"split": "train[-9:]"}]),
)
def test_a_cursor_goes_on_from_any_state_and_passes_over_what_it_would_read(kinds, stops, order, arguments):
    source = Rows(f"{kinds}/*.*", **arguments)
    whole = assert_goes_on(source, stops, order, told, goes_on_at_end=True)
    assert len(whole) == {"train[3:25]": 22, "train[-9:]": 9}.get(arguments.get("split"), 40)


def told(record):
    return record.location, str(record.row)


def test_a_state_of_other_files_is_refused(shards):
    source = Rows(f"{shards}/*/*.jsonl")
    cursor = source.records()
    next(cursor)
    (shards / "a" / "2.jsonl").write_text("")
    with pytest.raises(UserError, match="cannot go on where training stopped: it has other files than then"):
        source.records(state=cursor.state())


def test_forked_processes_read_with_cursors_of_their_own(shards):
    source = pickle.loads(pickle.dumps(Rows(f"{shards}/*/*.jsonl")))
    cursor = source.records()
    next(cursor)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        assert [*pool.map(prompts, [source, source])] == 2 * [["p0", "p1", "p2", "p3", "p4"]]
    assert [record.row["prompt"] for record in cursor] == ["p1", "p2", "p3", "p4"]


def test_files_come_in_an_order_of_their_own_and_rows_do_not(shards):
    source = Rows(f"{shards}/*/*.jsonl")
    orders = {tuple(record.row["prompt"] for record in source.records(order)) for order in range(12)}
    assert len(orders) > 2
    assert all(sorted(order) == ["p0", "p1", "p2", "p3", "p4"] for order in orders)
    assert all("p1 p2 p3" in " ".join(order) for order in orders)


def test_a_split_is_a_slice_and_rows_are_named(write_rows):
    path = write_rows(PAIRS)
    assert [(where, row["prompt"]) for where, row in Rows(path, split="train[2:4]").rows()] == [
        (f"{path}, row 2", "p2"),
        (f"{path}, row 3", "p3"),
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: Rows(folder / "none.jsonl"), "none.jsonl: there is no such file$"),
        (lambda folder: Rows("data/none.jsonl.gz"), "data/none.jsonl.gz: there is no such file$"),
        (lambda folder: Rows(folder / "a.jsonl" / "b"), "a.jsonl/b: there is no such file$"),
        (lambda folder: Rows(f"{folder}/*.parquet"), r"\*.parquet: there is no such file that the pattern fits$"),
        (lambda folder: Rows(folder / "empty"), "empty: no rows can be read from this folder"),
        (lambda folder: Rows(folder / "text"), "text: no rows can be read from this folder"),
        (lambda folder: Rows("nobody/no-such-data"), "no such file or folder, nor a data set of the hub or its caches"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, make, message):
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.xlsx").write_text("x")
    with pytest.raises(UserError, match=message):
        list(make(tmp_path).rows())


def test_an_unknown_split_is_named(write_rows):
    with pytest.raises(UserError, match="validation"):
        list(Rows(write_rows(PAIRS), split="validation").rows())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "train[2"}, "is not like train"),
        ({"share": (0.5, 0.5)}, "must be two numbers"),
        ({"share": (0, 2)}, "share"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(UserError, match=message):
        Rows("a.jsonl", **arguments)


def test_an_unknown_kind_of_file_is_named(tmp_path):
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(UserError, match=r"unknown kind of file '.xlsx'"):
        list(Rows(str(tmp_path / "a.xlsx")).rows())


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(UserError, match=r"a.jsonl, row 1: invalid JSON"):
        list(Rows(str(tmp_path / "a.jsonl")).rows())
