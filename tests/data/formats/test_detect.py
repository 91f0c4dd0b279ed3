import pytest

from lit_tr.data import formats
from lit_tr.errors import BadRowError


def refused(row):
    with pytest.raises(BadRowError) as caught:
        formats.detect(row)
    return caught.value


def test_a_column_of_nulls_does_not_count():
    assert formats.detect({"prompt": None, "chosen": "a", "rejected": "b"}) is formats.implicit_prompt


@pytest.mark.parametrize("label", ["label", "kto_tag", "rejected"])
def test_a_row_whose_label_is_missing_is_not_learned_as_it_is(label):
    assert refused({"prompt": "a", "completion": "b", label: None}).reason in ("no 'label'", "unknown format")
    assert formats.detect({"prompt": "a", "completion": "b"}) is formats.completion


@pytest.mark.parametrize("row", [None, 3, "text", [], ["chosen", "rejected"]])
def test_what_is_no_row_is_a_bad_row(row):
    assert refused(row).reason == "the row is not an object with columns"


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (
            "question winner loser",
            "prompt+chosen+rejected; `columns: {prompt: question, chosen: winner, rejected: loser}`",
        ),
        ("Prompt Chosen Rejected", "`columns: {prompt: Prompt, chosen: Chosen, rejected: Rejected}`"),
        ("prompt chosen_answer rejected_answer", "`columns: {chosen: chosen_answer, rejected: rejected_answer}`"),
        ("prompt preferred dispreferred", "`columns: {chosen: preferred, rejected: dispreferred}`"),
        ("id query good_reply bad_reply", "`columns: {prompt: query, chosen: good_reply, rejected: bad_reply}`"),
        ("prompts chosen rejects", "`columns: {prompt: prompts, rejected: rejects}`"),
        ("prompt response thumbs_up", "prompt+completion+label; `columns: {completion: response, label: thumbs_up}`"),
        ("prompt candidates ranking", "prompt+responses+ranks; `columns: {responses: candidates, ranks: ranking}`"),
        ("question answer", "prompt+completion; `columns: {prompt: question, completion: answer}`"),
    ],
)
def test_what_is_close_shows_the_line_that_maps_it(columns, line):
    error = refused(dict.fromkeys(columns.split(), "x"))
    assert error.reason == "unknown format"
    assert error.detail.startswith(f"the columns are {', '.join(sorted(columns.split()))}; closest is ")
    assert line in error.detail


@pytest.mark.parametrize(
    ("row", "missing"),
    [
        ({"prompt": "a", "chosen": "b"}, "closest is prompt+chosen+rejected, and 'rejected' is missing"),
        ({"prompt": "a", "label": True}, "closest is prompt+completion+label, and 'completion' is missing"),
        ({"query": "a", "preferred": "b"}, "'rejected' is missing; `columns: {prompt: query, chosen: preferred}`"),
    ],
)
def test_a_missing_column_is_named(row, missing):
    error = refused(row)
    assert (error.reason, missing in error.detail) == ("unknown format", True)


@pytest.mark.parametrize(
    ("row", "columns"), [({}, "none"), ({1: 2, "a": 3}, "1, a"), ({"x1": "a", "x2": "b"}, "x1, x2")]
)
def test_what_is_close_to_nothing_says_where_to_look(row, columns):
    error = refused(row)
    assert error.reason == "unknown format"
    assert error.detail.startswith(f"the columns are {columns}; `lit-tr data formats`")


def test_the_line_that_is_shown_is_right():
    row = {"question": "Hi", "winner": " Hello", "loser": " No"}
    mapped = {"prompt": "question", "chosen": "winner", "rejected": "loser"}
    assert f"{{{', '.join(f'{name}: {column}' for name, column in mapped.items())}}}" in refused(row).detail
    assert formats.Conversion(columns=mapped)(row) == [
        formats.explicit_prompt({key: row[mapped[key]] for key in mapped})
    ]
