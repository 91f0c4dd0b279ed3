import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_tr.data import Collator
from lit_tr.data.intake import BadRows, Intake, Layout
from lit_tr.data.sources import Read
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.errors import BadRowError, UserError


def example(tokens):
    return TokenizedExample([1], [2] * (tokens - 2), [3])


def read(row):
    if "error" in row:
        raise row["error"]
    return [example(row["tokens"])] * row.get("times", 1)


@given(
    sizes=st.lists(st.integers(3, 20), max_size=40),
    layout=st.sampled_from([{"batch_size": 3}, {"batch_size": 3, "by_length": True}, {"max_tokens": 20}]),
    seed=st.none() | st.integers(0, 5),
)
def test_each_example_is_in_one_batch(sizes, layout, seed):
    draw = None if seed is None else torch.Generator().manual_seed(seed)
    batches = Layout(Collator(), **layout).plan([example(size) for size in sizes], draw)
    assert sorted(sum(batches, [])) == list(range(len(sizes)))
    if "max_tokens" in layout:
        assert all(sum(sizes[i] for i in batch) <= 20 for batch in batches)
    else:
        assert [len(batch) for batch in batches[:-1]] == [3] * (len(batches) - 1)
    if layout.get("by_length") and len(batches) > 1:
        spans = sorted((min(sizes[i] for i in batch), max(sizes[i] for i in batch)) for batch in batches)
        assert all(one[1] <= other[0] for one, other in zip(spans, spans[1:], strict=False))


def test_what_becomes_of_a_row(tmp_path):
    file = tmp_path / "new" / "bad.jsonl"
    intake = Intake(read, Layout(Collator(), max_tokens=9), BadRows(True, file))
    assert intake(Read("a, row 0", {"tokens": 5, "times": 2})) == [example(5)] * 2
    assert intake(Read("a, row 1", None)) == []
    assert intake(Read("a, row 2", BadRowError("invalid JSON", "here"))) == []
    assert intake(Read("a, row 3", {"tokens": 10})) == []
    assert intake(Read("a, row 4", {"error": BadRowError("invalid JSON")})) == []
    assert intake.bad_rows.counts == {"invalid JSON": 2, "the row passes max_tokens": 1}
    assert file.read_text().splitlines() == [
        '{"where": "a, row 2", "reason": "invalid JSON", "detail": "here"}',
        '{"where": "a, row 3", "reason": "the row passes max_tokens", "detail": '
        '"10 tokens with both responses, max_tokens 9"}',
        '{"where": "a, row 4", "reason": "invalid JSON", "detail": ""}',
    ]


@pytest.mark.parametrize("skip", [True, False])
def test_an_unknown_format_ends_the_run_whatever_is_done_with_bad_rows(skip):
    intake = Intake(read, Layout(Collator(), 1), BadRows(skip))
    with pytest.raises(UserError, match="^a, row 7: unknown format$"):
        intake(Read("a, row 7", {"error": UserError("unknown format")}))


def test_a_bad_row_ends_the_run_where_none_are_skipped():
    with pytest.raises(UserError, match=r"^a, row 7: invalid JSON \(x\); fix the row, or leave such rows out by"):
        Intake(read, Layout(Collator(), 1), BadRows(False))(Read("a, row 7", BadRowError("invalid JSON", "x")))
