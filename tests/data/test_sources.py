import csv
import gzip
import json

import datasets
import pytest

from lit_tr.data import Rows
from lit_tr.errors import UserError

PAIRS = [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(5)]


def write_jsonl(path):
    path.write_text("".join(json.dumps(row) + "\n" for row in PAIRS))


def write_gzip(path):
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in PAIRS)


def write_csv(path):
    with path.open("w") as file:
        writer = csv.DictWriter(file, PAIRS[0])
        writer.writeheader()
        writer.writerows(PAIRS)


def write_parquet(path):
    datasets.Dataset.from_list(PAIRS).to_parquet(path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.jsonl", write_jsonl), ("a.jsonl.gz", write_gzip), ("a.csv", write_csv), ("a.parquet", write_parquet)],
)
def test_each_kind_of_file_gives_its_rows_in_order(tmp_path, name, write):
    write(tmp_path / name)
    assert [dict(row) for _, row in Rows(str(tmp_path / name)).rows()] == PAIRS


def test_a_split_is_a_slice_and_rows_are_named(write_rows):
    path = write_rows(PAIRS)
    assert [(where, row["prompt"]) for where, row in Rows(path, split="train[2:4]").rows()] == [
        (f"{path}, row 2", "p2"),
        (f"{path}, row 3", "p3"),
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: Rows(str(folder / "none.jsonl")), "no such file, and no such data set on the hub"),
        (lambda folder: Rows("nobody/no-such-data"), "no such file, and no such data set on the hub"),
    ],
)
def test_what_is_not_there_is_named(tmp_path, make, message):
    with pytest.raises(UserError, match=message):
        list(make(tmp_path).rows())


def test_an_unknown_split_is_named(write_rows):
    with pytest.raises(UserError, match="validation"):
        list(Rows(write_rows(PAIRS), split="validation").rows())


def test_an_unknown_kind_of_file_is_named(tmp_path):
    (tmp_path / "a.xlsx").write_text("x")
    with pytest.raises(UserError, match=r"unknown kind of file '.xlsx'"):
        list(Rows(str(tmp_path / "a.xlsx")).rows())


def test_a_broken_file_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    with pytest.raises(UserError, match=r"a.jsonl, row 1: invalid JSON"):
        list(Rows(str(tmp_path / "a.jsonl")).rows())
