import bz2
import csv
import gzip
import json
import lzma

import fsspec
import pyarrow
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pyarrow import ipc, parquet

from lit_tr.data.rows import Rows
from lit_tr.data.rows.opening import open_file, version_of
from lit_tr.errors import UserError

ROWS = [{"n": str(n), "text": f"é{n}\n" * (n % 4)} for n in range(100)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def listed(path):
    path.write_text("\n " + json.dumps(ROWS))


def table(path, delimiter=","):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(ROWS)


def columns(path):
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path, row_group_size=17)


def arrow(path, new=ipc.new_stream):
    whole = pyarrow.Table.from_pylist(ROWS)
    with new(str(path), whole.schema) as writer:
        writer.write_table(whole, max_chunksize=13)


def zstd(data):
    return pyarrow.compress(data, "zstd", asbytes=True)


KINDS = {
    "lines.jsonl": lambda path: path.write_bytes(LINES),
    "lines.JSONL": lambda path: path.write_bytes(LINES),
    "lines.ndjson": lambda path: path.write_bytes(LINES),
    "lines.json": lambda path: path.write_bytes(LINES),
    "lines.jsonl.gz": lambda path: path.write_bytes(gzip.compress(LINES)),
    "lines.jsonl.bz2": lambda path: path.write_bytes(bz2.compress(LINES)),
    "lines.jsonl.xz": lambda path: path.write_bytes(lzma.compress(LINES)),
    "lines.jsonl.ZST": lambda path: path.write_bytes(zstd(LINES[:500]) + zstd(LINES[500:])),
    "lines.json.zst": lambda path: path.write_bytes(zstd(LINES)),
    "list.json": listed,
    "list.json.zst": lambda path: path.write_bytes(zstd(json.dumps(ROWS).encode())),
    "table.csv": table,
    "table.tsv": lambda path: table(path, "\t"),
    "columns.parquet": columns,
    "stream.arrow": arrow,
    "file.arrow": lambda path: arrow(path, ipc.new_file),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for name, write in KINDS.items():
        write(folder / name)
    return folder


def none_of(name):
    """Return what an empty text becomes."""
    return None if name.startswith("table") else ""


def number(row):
    return None if row is None else int(row["n"])


@pytest.mark.parametrize("name", KINDS)
def test_the_rows_are_all_there(folder, name):
    file = open_file(str(folder / name))
    found = list(iter(lambda: next(file, None), None))
    assert found == [{key: value or none_of(name) for key, value in row.items()} for row in ROWS]
    file.close()


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(sorted(KINDS)),
    moves=st.lists(st.tuples(st.sampled_from(["read", "skip", "reopen"]), st.integers(1, 40)), max_size=12),
)
def test_any_way_through_a_file_finds_the_rows_in_order(folder, name, moves):
    file, at = open_file(str(folder / name)), 0
    for move, count in moves:
        if move == "skip":
            passed = file.skip(count)
            assert passed == min(count, 100 - at)
            at += passed
        elif move == "reopen":
            state = json.loads(json.dumps(file.state))
            file.close()
            file = open_file(str(folder / name), state)
        else:
            for _ in range(count):
                assert number(next(file, None)) == (at if at < 100 else None)
                at = min(at + 1, 100)
    file.close()


def read_all(path):
    """Return the rows and bad rows of a file, and the message of the error that ended it."""
    found = []
    try:
        found += Rows(path).records()
    except UserError as error:
        return found, str(error)
    return found, None


PLAIN = ("jsonl", "JSONL", "ndjson", "csv", "tsv", "lines.json")


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(KINDS)), share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_anywhere_gives_its_first_rows_and_then_one_message(folder, name, share):
    data = (folder / name).read_bytes()
    path, cut = folder / f"cut.{name.partition('.')[2]}", max(int(share * len(data)), 1)
    assume(data[:cut].strip())
    assume(name != "lines.jsonl.ZST" or cut != len(zstd(LINES[:500])))  # one whole file behind the other
    path.write_bytes(data[:cut])
    found, message = read_all(path)
    rows = [record.row for record in found]
    if name.endswith(PLAIN):
        assert message is None
        rows = rows[:-1]  # which may be cut
    else:
        assert path.name in message
    assert rows == [{key: value or none_of(name) for key, value in row.items()} for row in ROWS[: len(rows)]]


@pytest.mark.parametrize("name", [name for name in KINDS if name.endswith((".gz", ".bz2", ".xz", ".ZST"))])
def test_what_is_cut_is_told_of_where_rows_are_passed_over(folder, name):
    data, path = (folder / name).read_bytes(), folder / f"skip.{name.partition('.')[2]}"
    path.write_bytes(data[:-20])
    with pytest.raises(UserError, match=rf"{path.name}, after row 0: the file is broken or cut short"):
        Rows(path).records().skip(200)
    with pytest.raises(UserError, match=rf"{path.name}: the file is broken or cut short"):
        Rows(path, "train[:50%]").records()


@settings(max_examples=400, deadline=None)
@given(name=st.sampled_from(sorted(KINDS)), share=st.floats(0, 1), noise=st.binary(min_size=1, max_size=40))
def test_a_corrupt_file_gives_rows_bad_rows_or_one_message(folder, name, share, noise):
    data = bytearray((folder / name).read_bytes())
    at = int(share * (len(data) - len(noise)))
    data[at : at + len(noise)] = noise
    path = folder / f"corrupt.{name.partition('.')[2]}"
    path.write_bytes(data)
    _, message = read_all(path)
    assert message is None or path.name in message


def test_the_version_of_a_file_changes_with_it(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    before = version_of(str(path))
    assert before == version_of(str(path))
    path.write_text("{ }")
    assert version_of(str(path)) != before
    with fsspec.open("memory://version/a.jsonl", "w") as file:
        file.write("{}")
    assert version_of("memory://version/a.jsonl") == version_of("memory://version/a.jsonl") is not None
