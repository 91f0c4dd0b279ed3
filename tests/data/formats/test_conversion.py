import pytest

from lit_tr.data.example import Example
from lit_tr.data.formats import FORMATS, Conversion, Ranking, explicit_prompt
from lit_tr.errors import BadRowError, UserError

ROW = {"prompt": "Hi", "chosen": " Hello", "rejected": " No"}
PAIR = Example("Hi", " Hello", " No")


def test_columns_are_given_the_names_of_the_format():
    columns = {"prompt": "question", "chosen": "response_x", "rejected": "response_y"}
    row = {"question": "Hi", "response_x": " Hello", "response_y": " No", "id": 3}
    assert Conversion(columns=columns).convert(row) == ([PAIR], {"id"})
    assert Conversion(explicit_prompt, columns)(row) == [PAIR]


def test_columns_may_be_nested():
    columns = {"prompt": "question.full_text", "chosen": "answers.0.text", "rejected": "answers.1.text"}
    row = {"question": {"full_text": "Hi", "id": 1}, "answers": [{"text": " Hello"}, {"text": " No"}], "other": 1}
    assert Conversion(columns=columns).convert(row) == ([PAIR], {"other"})
    assert Conversion(columns={"prompt": "a.b"}).convert({**ROW, "a.b": "Hi"}) == ([PAIR], {"prompt"})


@pytest.mark.parametrize("path", ["question", "nested.b", "nested.0", "list.2", "list.-1", "list.a", "prompt.a", ""])
def test_a_column_that_is_named_and_missing_is_a_bad_row(path):
    row = {**ROW, "nested": {"a": "Hi"}, "list": ["Hi", "Ho"]}
    with pytest.raises(BadRowError) as caught:
        Conversion(columns={"prompt": path})(row)
    assert caught.value.reason == "a column that `columns` names is missing"
    assert caught.value.detail == f"{path!r}; there are ['chosen', 'list', 'nested', 'prompt', 'rejected']"


def test_two_columns_can_change_their_names_with_each_other():
    columns = {"chosen": "rejected", "rejected": "chosen"}
    assert Conversion(columns=columns).convert(ROW) == ([Example("Hi", " No", " Hello")], frozenset())


def test_columns_that_are_not_read_are_named():
    row = {**ROW, "source": "a", "Unnamed: 0": 0, "null": None, "empty": "", "none": [], "system": "Be kind."}
    examples, unread = Conversion().convert(row)
    assert examples == [Example("Hi", " Hello", " No", system="Be kind.")]
    assert unread == {"source", "Unnamed: 0"}


def test_a_system_prompt_that_the_chat_has_already_is_not_read():
    chat = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    row = {"prompt": chat, "chosen": "Hello", "rejected": "No", "system": "Be brief."}
    examples, unread = Conversion().convert(row)
    assert (examples[0].prompt, unread) == (chat, {"system"})


@pytest.mark.parametrize(
    ("format", "unread"),
    [
        (lambda row: Example(row["prompt"], row["chosen"], row.get("rejected")), {"source"}),
        (lambda row: Example(row.pop("prompt"), row.pop("chosen"), row.pop("gone", " No")), {"rejected", "source"}),
        (lambda row: explicit_prompt({**row}), set()),
        (lambda row: explicit_prompt(dict(row)), set()),
        (lambda row: explicit_prompt(dict(row.items())), set()),
        (lambda row: Example(*list(row.values())[:3]), set()),
        (lambda row: Example(*(row[key] for key in row if key != "source")), {"source"}),
        (lambda row: PAIR, {"prompt", "chosen", "rejected", "source"}),
    ],
)
def test_what_a_function_of_ones_own_reads_is_known(format, unread):
    row = {**ROW, "source": "a"}
    assert Conversion(format).convert(row) == ([PAIR], unread)
    assert row == {**ROW, "source": "a"}


def test_a_key_that_a_function_of_ones_own_misses_is_a_bad_row():
    with pytest.raises(BadRowError, match="^no 'answer'$"):
        Conversion(lambda row: Example(row["prompt"], row["answer"], None))(ROW)


@pytest.mark.parametrize("given", [None, ROW, (PAIR, PAIR), [PAIR, "text"]])
def test_what_is_no_example_is_refused(given):
    with pytest.raises(UserError, match="the format gave (NoneType|dict|tuple|str), and not an Example"):
        Conversion(lambda row: given)(ROW)


@pytest.mark.parametrize("row", [None, 3, "text", ["chosen"]])
@pytest.mark.parametrize("conversion", [Conversion(), Conversion(explicit_prompt), Conversion(columns={"prompt": "a"})])
def test_what_is_no_row_is_a_bad_row(row, conversion):
    with pytest.raises(BadRowError, match="not an object with columns"):
        conversion(row)


def test_a_row_may_make_several_examples():
    row = {"prompt": "Hi", "responses": [" Hello", " Hm", " No"]}
    assert len(Conversion(Ranking(pairs="all"))(row)) == 3


def test_a_row_that_is_nested_too_deeply_is_a_bad_row():
    deep: dict = {}
    for _ in range(5000):
        deep = {"a": deep}
    row = {"prompt": [{"role": "user", "content": "Hi", "deep": deep}], "chosen": "a", "rejected": "b"}
    with pytest.raises(BadRowError, match="nested too deeply"):
        Conversion()(row)


def test_the_example_rows_name_what_is_not_read():
    unread = {column for known in FORMATS for column in Conversion().convert(known.row)[1]}
    assert {"id", "model_name", "source", "qid", "language"} <= unread
    assert unread.isdisjoint({"prompt", "chosen", "rejected", "system", "system_prompt", "score_A", "tools"})
