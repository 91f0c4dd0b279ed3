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
from lit_tr.data.rows.files import LONGEST
from lit_tr.data.rows.opening import open_file, version_of
from lit_tr.errors import BadRowError, UserError

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


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"n": 1', "invalid JSON"),
        (b'{"n": "\xff"}', "invalid JSON"),
        (b"[1]", "the row is no JSON object"),
        (b"[" * 100_000, "invalid JSON"),
        (b'{"n": "' + b"x" * LONGEST + b'"}', f"the line is longer than {LONGEST} bytes"),
    ],
    ids=["half", "bytes", "list", "deep", "long"],
)
def test_a_bad_line_is_named_and_the_next_one_is_read(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_bytes(b'{"n": 0}\n' + line + b'\n\n{"n": 2}')
    file = open_file(str(tmp_path / "a.jsonl"))
    assert next(file) == {"n": 0}
    with pytest.raises(BadRowError) as error:
        next(file)
    assert error.value.reason == reason
    assert next(file) is None  # an empty line is no row
    assert next(file) == {"n": 2}
    assert next(file, None) is None
    assert open_file(str(tmp_path / "a.jsonl")).skip(9) == 4


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


def test_a_broken_file_is_named_with_the_row_where_it_breaks(tmp_path):
    path = tmp_path / "a.parquet"
    columns(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 4 + 200] = bytes(200)
    path.write_bytes(data)
    found, message = read_all(path)
    assert f"a.parquet, row {len(found)}: the file is broken or cut short from here on" in message
    assert [record.row for record in found] == ROWS[: len(found)]


def test_a_stream_of_arrow_without_its_end_is_refused(tmp_path):
    path = tmp_path / "a.arrow"
    arrow(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="a.arrow: cannot be read as .arrow"):
        open_file(str(path))


def test_a_list_that_is_cut_gives_one_message(tmp_path):
    (tmp_path / "a.json").write_text('[{"n": 1}, {"n":')
    with pytest.raises(UserError, match="a.json: cannot be read as .json: Expecting value"):
        open_file(str(tmp_path / "a.json"))


def test_text_in_parquet_that_is_no_utf8_is_a_bad_row(tmp_path):
    text = pyarrow.array([b"a", b"\xff", b"c"]).cast(pyarrow.string(), safe=False)
    parquet.write_table(pyarrow.table({"n": text}), tmp_path / "a.parquet")
    file = open_file(str(tmp_path / "a.parquet"))
    assert next(file) == {"n": "a"}
    with pytest.raises(BadRowError, match="a value cannot be decoded"):
        next(file)
    assert next(file) == {"n": "c"}


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


@pytest.mark.parametrize("text", ["a,b\n1,2,3\n4,5\n", "a,b\n1\n4,5\n"])
def test_a_row_of_csv_with_other_fields_than_the_head(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    file = open_file(str(tmp_path / "a.csv"))
    with pytest.raises(BadRowError, match="another number of fields"):
        next(file)
    assert next(file) == {"a": "4", "b": "5"}


def test_broken_quotes_in_csv(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n"x"y,2\n')
    with pytest.raises(BadRowError, match="invalid CSV"):
        next(open_file(str(tmp_path / "a.csv")))
