import functools
import importlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import datasets
import pandas
import pytest

from lit_tr.data.formats.rated import Ranking, UltraFeedback
from lit_tr.data.rows import Mixture, Objects, Rows, Source
from lit_tr.data.rows.source import hash_of

ROWS = [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(20)]

MAKE = """
import datasets, pandas, sys
from lit_tr.data.rows import Mixture, Objects, Rows
sys.path.insert(0, {folder!r})
import my_format
rows = [{{"prompt": f"p{{i}}", "chosen": f"c{{i}}", "rejected": f"r{{i}}"}} for i in range(20)]
def local(row):
    return row
sources = [
    Rows({path!r}, columns={{"prompt": "question"}}, chat=False),
    Rows({path!r}, format=my_format.read),
    Rows({path!r}, format=local),
    Objects(rows),
    Objects(datasets.Dataset.from_list(rows)),
    Objects(pandas.DataFrame(rows)),
]
print([source.fingerprint() for source in [*sources, Mixture(sources, seed=4)]])
"""


def run(script):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    return json.loads(done.stdout.splitlines()[-1].replace("'", '"'))


@pytest.mark.slow  # starts python four times
def test_it_is_the_same_at_the_next_start_and_another_one_after_a_change(tmp_path, write_rows):
    module = tmp_path / "my_format.py"
    module.write_text("def read(row):\n    return row['a']\n")
    script = MAKE.format(folder=str(tmp_path), path=write_rows(ROWS))
    first, second = run(script), run(script)
    assert first == second
    assert len(set(first)) == len(first)
    module.write_text("def read(row):\n    return row['b']\n")
    changed = run(script)
    assert [a == b for a, b in zip(first, changed, strict=True)] == [True, False, True, True, True, True, False]
    edited = run(script.replace("return row\n", "return dict(row)\n"))
    assert [a == b for a, b in zip(changed, edited, strict=True)] == [True, True, False, True, True, True, False]


def test_a_format_goes_in_by_its_code(tmp_path, monkeypatch, write_rows):
    module = tmp_path / "own_format.py"
    module.write_text("def read(row):\n    return row['a']\n")
    monkeypatch.syspath_prepend(tmp_path)
    own = importlib.import_module("own_format")
    sources = [Objects(ROWS, format=own.read), Objects(ROWS, format=functools.partial(own.read)), Objects(ROWS)]
    before = [source.fingerprint() for source in sources]
    assert len(set(before)) == 3
    module.write_text("def read(row):\n    return row['other']\n")
    assert [a == source.fingerprint() for a, source in zip(before, sources, strict=True)] == [False, False, True]


@pytest.mark.parametrize("make", [list, datasets.Dataset.from_list, pandas.DataFrame])
def test_objects_with_other_rows_differ(make):
    other = [*ROWS[:-1], {**ROWS[-1], "chosen": "x"}]
    found = [Objects(make(rows)).fingerprint() for rows in (ROWS, ROWS[:-1], ROWS[::-1], other)]
    assert None not in found
    assert len(set(found)) == 4


def test_what_decides_rows_and_conversion_goes_in(tmp_path, write_rows):
    source = Rows(write_rows(ROWS))
    changes = [
        {"split": "train[1:]"},
        {"share": (0, 0.5)},
        {"share": (0, 0.5), "share_seed": 1},
        {"share": (0, 0.5), "share_by": "prompt"},
        {"format": UltraFeedback()},
        {"format": UltraFeedback(pairs="all")},
        {"format": Ranking()},
        {"columns": {"prompt": "question"}},
        {"chat": False},
    ]
    found = [source.fingerprint(), *(replace(source, **change).fingerprint() for change in changes)]
    assert None not in found
    assert len(set(found)) == len(found)
    write_rows(ROWS[:-1])
    assert source.fingerprint() not in found
    assert Rows(source.path, share_by="prompt").fingerprint() == source.fingerprint()  # of all rows, however hashed


def test_what_a_mixture_draws_goes_in():
    sources = [Objects(ROWS), Objects(ROWS[:5])]
    mixtures = [
        Mixture(sources),
        Mixture(sources[::-1]),
        Mixture(sources, [1.0, 2.0]),
        Mixture(sources, seed=1),
        Mixture(sources, until="all_exhausted"),
    ]
    assert len({mixture.fingerprint() for mixture in mixtures}) == len(mixtures)


def test_none_where_it_cannot_be_known():
    class Own(Source):
        def rows(self):
            yield "here", {}

    unknown = [
        Own(),
        Objects(lambda: iter(ROWS)),
        Objects(datasets.Dataset.from_list(ROWS).to_iterable_dataset()),
        Objects([{"prompt": (letter for letter in "ab")}]),  # which no pickle takes
    ]
    assert [source.fingerprint() for source in unknown] == [None] * 4
    assert Mixture([Objects(ROWS), Own()]).fingerprint() is None


def test_values_that_are_equal_hash_alike_whatever_objects_they_share():
    text = "".join(["a", "b"])
    shared, apart = [{"a": text, "b": text}], [{"a": text, "b": "".join(["a", "b"])}]
    assert Objects(shared).fingerprint() == Objects(apart).fingerprint()


def test_many_rows_are_hashed_in_a_moment():
    rows = [{"prompt": f"{i} " * 100, "chosen": f"{i} " * 300, "rejected": f"{i} " * 300} for i in range(61_000)]
    start = time.perf_counter()
    assert Objects(rows).fingerprint()
    assert time.perf_counter() - start < 2


def test_hash_of_is_for_a_source_of_ones_own():
    conversion = Objects(ROWS).conversion
    assert hash_of(conversion, 1) == hash_of(conversion, 1) != hash_of(conversion, 2)
