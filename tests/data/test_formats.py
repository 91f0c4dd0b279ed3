import pytest

from lit_tr.data import formats
from lit_tr.data.example import Example
from lit_tr.data.formats import AlpacaEval
from lit_tr.errors import BadRowError, UserError
from tests.data.format_rows import BAD, CALL, GOOD, KIND, NOON, ROWS, USER, alpaca_row, tldr_row

POST = "SUBREDDIT: r/pets\n\nTITLE: My key\n\nPOST: I lost it.\n\nTL;DR:"
PAIR = Example("Hi", " Hello", " No")
CHAT = Example([USER], [GOOD], [BAD])


def said(prompt, chosen, rejected, **labels):
    ask, one, other = (
        [{"role": role, "content": text}]
        for role, text in (("user", prompt), ("assistant", chosen), ("assistant", rejected))
    )
    return Example(ask, one, other, **labels)


EXAMPLES = {  # what the rows in format_rows.py become, by hand
    "explicit_prompt": [PAIR, Example("Describe a cold river.", " It is icy.", " It is hot.")],
    "implicit_prompt": [
        Example("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", " yes", " no"),
        Example("\n\nHuman: a\n\nAssistant:", " yes", " no"),
    ],
    "chat": [CHAT, Example([KIND, USER], [CALL, NOON, GOOD], [BAD])],
    "chat_implicit": [
        CHAT,
        Example([USER], [GOOD, USER, GOOD], [BAD, USER, GOOD]),
        Example([KIND, USER, CALL, NOON], [GOOD], [BAD]),
    ],
    "sharegpt": [CHAT, Example([KIND, USER], [GOOD], [BAD])],
    "unpaired": [Example("Hi", " Hello", None), Example([USER], None, [BAD])],
    "tldr": [Example(POST, " Lost my key.", " Pets.")] * 2,
    "AlpacaEval": [
        said("Say hi", "Hello!", "No.", confidence=0.75),
        said("Say hi", "No.", "Hello!"),
        said("Say hi", "Hello!", "No.", confidence=0.5),
    ],
    # means 1.5, 4.5, 3 and none; 3 and 2
    "UltraFeedback": [[said("Say hi", "Hello!", "No.", margin=3.0)], [said("Say no", "No.", "Yes.", margin=1.0)]],
    "CodeUltraFeedback": [
        [said("Sort it", "sorted(x)", "sort(x)", margin=3.0)],
        [said("Add them", "a + b", "sum", margin=3.0)],
    ],
    "Ranking": [[Example("Hi", " Hello", " No", margin=2.0)], [Example("Hi", " Hello", " No", margin=6.0)]],
}


@pytest.mark.parametrize("name", ROWS)
def test_each_format_is_read_and_detected(name):
    named = getattr(formats, name)
    format = named() if isinstance(named, type) else named
    for row, examples in zip(ROWS[name], EXAMPLES[name], strict=True):
        assert format(row) == examples
        assert formats.detect(row) == format


@pytest.mark.parametrize(
    ("preference", "chosen", "confidence"), [(0, "Hello!", 0.5), (1, "Hello!", 1), (1.9, "No.", 0.9)]
)
def test_alpaca_preferences_are_confidences(preference, chosen, confidence):
    example = AlpacaEval(chat=False)(alpaca_row(preference))
    assert (example.prompt, example.chosen) == ("Say hi", chosen)
    assert example.confidence == pytest.approx(confidence)


def test_a_prompt_as_text_beside_whole_chats_is_the_implicit_chat_format():
    row = {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    assert formats.detect(row) is formats.chat_implicit


def test_a_dialogue_that_only_goes_on_keeps_a_message_in_each_response():
    row = {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, GOOD]}
    assert formats.chat_implicit(row) == Example([USER], [GOOD, USER, GOOD], [GOOD])


def test_keys_that_arrow_fills_with_null_are_no_keys():
    filled = {**CALL, "content": None, "name": None, "tool_call_id": None}
    row = {"prompt": [{**USER, "name": None, "tool_calls": None}], "chosen": [filled], "rejected": [BAD]}
    assert formats.chat(row) == Example([USER], [CALL], [BAD])


def test_text_parts_are_content():
    parts = {"role": "assistant", "content": [{"type": "text", "text": "Hello!"}]}
    assert formats.chat({"prompt": [USER], "chosen": [parts], "rejected": [BAD]}).chosen == [parts]


def test_a_column_of_nulls_does_not_count():
    assert formats.detect({"prompt": None, "chosen": "a", "rejected": "b"}) is formats.implicit_prompt


def test_unknown_keys_name_what_is_known():
    with pytest.raises(UserError, match=r"\['answer', 'question'\].*prompt\+chosen\+rejected"):
        formats.detect({"question": "a", "answer": "b"})


@pytest.mark.parametrize("row", [{"responses": ["a", "b"], "prompt": "c"}, {}, {1: 2, "a": 3}])
def test_responses_of_which_nobody_says_the_order_are_not_detected(row):
    with pytest.raises(UserError, match="unknown format"):
        formats.detect(row)


@pytest.mark.parametrize("row", [None, 3, "text", [], ["chosen", "rejected"]])
def test_what_is_no_row_is_a_bad_row(row):
    with pytest.raises(BadRowError, match="not an object with columns"):
        formats.detect(row)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_a_known_format_without_a_value_is_a_bad_row(name):
    row = ROWS[name][0]
    columns = next(columns for columns, _ in formats.BY_COLUMNS if set(columns) <= row.keys())
    with pytest.raises(BadRowError, match=f"no '{columns[-1]}'"):
        formats.detect({**row, columns[-1]: None})


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("explicit_prompt", {"chosen": None}, "no 'chosen'"),
        ("explicit_prompt", {"prompt": 3}, "'prompt' is not text"),
        ("explicit_prompt", {"rejected": " \n"}, "'rejected' is an empty response"),
        ("explicit_prompt", {"rejected": " Hello"}, "chosen and rejected are equal"),
        ("implicit_prompt", {"chosen": "Hello"}, "so its prompt cannot be found"),
        ("implicit_prompt", {"chosen": "\n\nHuman: z\n\nAssistant: yes"}, "do not share a prompt"),
        ("implicit_prompt", {"chosen": "\n\nHuman: a\n\nAssistant:"}, "'chosen' is an empty response"),
        (  # a turn of the human within the assistant's
            "implicit_prompt",
            {"rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d  Human: e\n\nAssistant: no"},
            "do not share a prompt",
        ),
        ("chat", {"chosen": [{"role": "assistant"}]}, "not a list of messages with 'role' and 'content'"),
        ("chat", {"chosen": [{"role": "assistant", "content": [{"image": "a.png"}]}]}, "not a list of messages"),
        ("chat", {"chosen": [{"role": "assistant", "tool_calls": "time"}]}, "not a list of messages"),
        ("chat", {"chosen": []}, "'chosen' is an empty response"),
        ("chat", {"chosen": [{"role": "assistant", "content": [{"text": " "}]}]}, "'chosen' is an empty response"),
        ("chat", {"prompt": []}, "'prompt' is an empty prompt"),
        ("chat_implicit", {"rejected": [BAD]}, "do not share a prompt"),
        ("chat_implicit", {"chosen": [GOOD], "rejected": [BAD]}, "do not share a prompt"),
        ("chat_implicit", {"chosen": [KIND, USER, GOOD], "rejected": [KIND, NOON, BAD]}, "do not share a prompt"),
        ("sharegpt", {"chosen": {"from": "robot", "value": "x"}}, "unknown speaker"),
        ("sharegpt", {"conversations": [{"from": "human"}]}, "not a list of turns with 'from' and 'value'"),
        ("unpaired", {"label": 1}, "'label' is not true or false"),
        ("unpaired", {"completion": ""}, "'completion' is an empty response"),
        ("tldr", {"choice": 2}, "'choice' is not the number of one of two summaries"),
        ("tldr", {"choice": True}, "'choice' is not the number"),
        ("tldr", {"info": {"title": "My key", "subreddit": "pets", "post": None}}, "no 'post'"),
        ("tldr", {"info": "My key"}, "'info' is not an object"),
        ("tldr", {"summaries": tldr_row("a", " ", 0)["summaries"]}, "'text' is an empty response"),
        ("tldr", {"summaries": ["a", "b"]}, "'summaries' is not a list of objects"),
        ("AlpacaEval", {"preference": float("nan")}, r"'preference' is not in \[1, 2\]"),
        ("AlpacaEval", {"preference": 3}, r"'preference' is not in \[1, 2\]"),
        ("AlpacaEval", {"output_2": "Hello!"}, "chosen and rejected are equal"),
    ],
)
def test_bad_rows_say_why(name, change, reason):
    named = getattr(formats, name)
    format = named() if isinstance(named, type) else named
    with pytest.raises(BadRowError, match=reason):
        format({**ROWS[name][0], **change})


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ({"margin": float("nan")}, "margin is not a finite number"),
        ({"margin": 1e39}, "margin is not a finite number"),  # too large for float32
        ({"confidence": float("nan")}, r"confidence is not in \[0, 1\]"),
        ({"confidence": 1.1}, r"confidence is not in \[0, 1\]"),
        ({"labels": {"score": (1.0, float("inf"))}}, "score is not two finite numbers"),
        ({"labels": {"score": (1.0,)}}, "score is not two finite numbers"),
        ({"labels": {"margin": (1.0, 1.0)}}, "margin is a field of its own"),
    ],
)
def test_labels_out_of_range_are_bad(labels, reason):
    with pytest.raises(BadRowError, match=reason):
        Example("a", "b", "c", **labels)


def test_turns_of_the_assistant_that_follow_each_other_are_one_response():
    row = {
        "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d\n\nAssistant: e",
        "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: ",
    }
    prompt = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert formats.implicit_prompt(row) == Example(prompt, " d\n\nAssistant: e", " ")
