import os
from dataclasses import replace
from multiprocessing import get_context

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_tr.data.build import ALONE, BLOCK
from lit_tr.data.cache import CacheBuilder
from lit_tr.data.process import Processed, RowProcessor
from lit_tr.data.rows import Source
from lit_tr.data.tokenization import Ahead, TokenizedExample
from lit_tr.errors import BadRowError, UserError

FORK = get_context("fork")


class Given(Source):
    """Rows that say what became of them, as a processor of its own takes them."""

    def __init__(self, rows, name="given"):
        self.given, self.name, self.asked = rows, name, 0

    def rows(self):
        self.asked += 1
        for number, row in enumerate(self.given):
            yield f"{self.name}, row {number}", row

    def fingerprint(self):
        return self.name


class AsGiven(RowProcessor):
    """Takes examples for rows."""

    def process(self, record):
        if "bad" in record.row:
            raise BadRowError("bad", record.row["bad"])
        if "kill" in record.row:
            os.kill(os.getpid(), 9)
        if "wrong" in record.row:
            raise UserError("no such format")
        return Processed(record.row["examples"], frozenset(record.row) - {"examples"})


def example(*ids, **fields):
    return {"examples": [TokenizedExample([1, 2], list(ids), [9], **fields)]}


@pytest.fixture
def build(tokenizer, tmp_path):
    def build(rows, most=0.5, processes=1, folder=tmp_path / "cache", **options):
        source = rows if hasattr(rows, "records") else Given(rows)
        return CacheBuilder(AsGiven(tokenizer, **options), folder, most, processes)(source, "train")

    return build


ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=6)
numbers = st.floats(-1e30, 1e30)


@st.composite
def tokenized(draw):
    chosen, rejected = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
    sides = [draw(ids) if there else None for there in (chosen, rejected)]
    is_scored = draw(st.booleans())
    scored = [
        draw(st.lists(st.booleans(), min_size=len(side), max_size=len(side))) if side and is_scored else None
        for side in sides
    ]
    labels = draw(st.dictionaries(st.text(max_size=3), st.tuples(numbers, numbers), max_size=2))
    subset = draw(st.none() | st.text(max_size=3))
    known = draw(numbers), draw(st.floats(0, 1))
    return TokenizedExample(draw(ids), *sides, *known, *scored, labels, draw(st.integers(0, 99)), subset=subset)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(examples=st.lists(tokenized(), min_size=1, max_size=5), data=st.data())
def test_examples_come_back_as_they_were(build, tmp_path_factory, examples, data):
    cache = build([{"examples": [one]} for one in examples], folder=tmp_path_factory.mktemp("cache"))
    assert list(cache) == examples
    some = data.draw(st.lists(st.integers(0, len(examples) - 1), max_size=6))
    found = cache.__getitems__(some)
    assert found == [examples[i] for i in some]
    assert [one.truncated for one in found] == [examples[i].truncated for i in some]


def test_it_is_found_again_by_rows_options_and_tokenizer(build, tokenizer, tmp_path):
    source = Given([example(3)])
    for _ in range(2):
        assert list(build(source)) == source.given[0]["examples"]
    assert source.asked == 1
    build(source, max_length=99)
    assert source.asked == 2
    changed = AsGiven(type(tokenizer).from_pretrained(tokenizer.name_or_path, eos_token="<other>"))
    CacheBuilder(changed, tmp_path / "cache", 0.5, 1)(source, "train")
    assert source.asked == 3
    build(Given([example(4)], "others"))
    assert len(list((tmp_path / "cache").glob("*.arrow"))) == 4


@pytest.mark.parametrize("left", [0, 1, 100, -1, -20])
def test_a_file_that_is_cut_short_is_made_again(build, tmp_path, left):
    source = Given([example(i) for i in range(20)])
    build(source)
    (file,) = (tmp_path / "cache").glob("*.arrow")
    whole = file.read_bytes()
    file.write_bytes(whole[:left])
    assert [one.chosen for one in build(source)] == [[i] for i in range(20)]
    assert (source.asked, file.read_bytes()) == (2, whole)


@pytest.mark.parametrize("summary", [None, "", "{}", '{"bytes": 1}'])
def test_a_file_without_its_summary_is_made_again(build, tmp_path, summary):
    source = Given([example(3)])
    build(source)
    (file,) = (tmp_path / "cache").glob("*.json")
    file.unlink() if summary is None else file.write_text(summary)
    assert len(build(source)) == 1
    assert source.asked == 2


def test_rows_that_nobody_could_find_again_are_kept_nowhere(build, tmp_path):
    source = Given([example(3)], name=None)
    assert [build(source)[0].chosen for _ in range(2)] == [[3], [3]]
    assert source.asked == 2
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("rows", [0, 1, ALONE - 1, ALONE, 5 * BLOCK + 3])
def test_several_processes_give_the_same_file_as_one(build, tmp_path, rows):
    given = [{"bad": f"{i}"} if i % 7 == 3 else example(i) for i in range(rows)]
    alone = build(Given(given), folder=tmp_path / "alone")
    together = build(Given(given), processes=3, folder=tmp_path / "together")
    assert [one.chosen for one in together] == [[i] for i in range(rows) if i % 7 != 3]
    assert [row.detail for row in together.bad_rows.found] == [str(i) for i in range(3, rows, 7)]
    assert together.bad_rows == alone.bad_rows
    one, other = (next((tmp_path / folder).glob("*.arrow")).read_bytes() for folder in ("alone", "together"))
    assert one == other


def test_what_ends_the_run_in_a_process_ends_it_here(build):
    rows = [example(i) for i in range(4 * BLOCK)]
    with pytest.raises(UserError, match=f"given, row {3 * BLOCK}: no such format"):
        build([*rows[: 3 * BLOCK], {"wrong": 1}, *rows], processes=2)
    with pytest.raises(UserError, match="a process that tokenizes rows was killed.*data.processes"):
        build([*rows, {"kill": 1}], processes=2)


def test_too_many_bad_rows_end_the_run_whenever_the_cache_is_read(build, tmp_path):
    source = Given([example(3), {"bad": "x"}, {"bad": "y"}])
    for _ in range(2):
        with pytest.raises(UserError, match=r"2 of 3 rows are bad \(2 x bad\); the first is given, row 1: bad \(x\)"):
            build(source)
    assert source.asked == 1
    assert build(source, most=2).bad_rows.rows == 3


def test_a_folder_that_cannot_be_written_is_named(build, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="data.cache_dir: .*file/cache cannot be written"):
        build([example(3)], folder=tmp_path / "file" / "cache")


class Gone(Given):
    def __str__(self):
        return "rows of mine"

    def rows(self):
        yield from super().rows()
        raise PermissionError(13, "Permission denied", "mine.db")


def test_a_source_that_cannot_be_read_is_no_fault_of_the_folder(build):
    with pytest.raises(UserError, match="^rows of mine: the rows cannot be read .*mine.db"):
        build(Gone([example(3)]))


def test_a_selection_and_its_columns(build):
    cache = build([example(3, 4), example(5), {"bad": ""}, example(6, truncated=7)])
    some = cache.select([2, 0])
    assert [one.chosen for one in some] == [[6], [3, 4]]
    assert some.column("truncated").tolist() == [7, 0]
    assert cache.location(2) == "given, row 3"
    assert len(set(cache.column("prompt_hash").tolist())) == 1


def test_columns_that_no_format_reads_are_named(build):
    rows = [example(3) | {"model": "a"}, example(4) | {"id": 1}]
    assert build(rows).unread == build(rows).unread == ("id", "model")


def test_precomputed_log_probs_are_attached(build):
    cache = build([example(3), example(4)])
    ahead = [Ahead([], [], []), Ahead([], [], [])]
    cache.attach(ahead)
    assert [cache[1].ahead is ahead[1], cache.__getitems__([1, 0])[1].ahead is ahead[0]] == [True, True]
    assert cache[0] == replace(cache[0], ahead=None)


def test_tokens_take_at_most_six_bytes_on_disk(build, tmp_path):
    rows = [example(*range(600)) for _ in range(300)]
    cache = build(rows)
    tokens = sum(len(one.prompt) + len(one.chosen) + len(one.rejected) for one in cache)
    assert sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()) < 6 * tokens


def test_of_several_ranks_one_makes_it_and_the_others_wait(build):
    rows = [example(i) for i in range(2000)]

    def rank(sender):
        source = Given(rows)
        sender.send((len(build(source)), source.asked))

    ends = [FORK.Pipe(duplex=False) for _ in range(3)]
    ranks = [FORK.Process(target=rank, args=(sender,)) for _, sender in ends]
    for process in ranks:
        process.start()
    assert sorted(receiver.recv() for receiver, _ in ends) == [(2000, 0), (2000, 0), (2000, 1)]
    for process in ranks:
        process.join()


def test_what_takes_long_says_how_many_rows_are_done(build, tmp_path, monkeypatch, capsys):
    rows = [example(1)] * (ALONE + 1)
    build(rows)
    assert capsys.readouterr().out == ""
    monkeypatch.setattr("lit_tr.data.cache.SILENT", 0.0)
    build(rows, folder=tmp_path / "other")
    said = [line.rpartition("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert said == [f"data.train: tokenizing  {done} rows" for done in (ALONE, ALONE + 1)]
