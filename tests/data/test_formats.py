import pytest

from lit_tr.data import formats
from lit_tr.data.formats import Example
from lit_tr.errors import BadRowError, UserError

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello!"}
BAD = {"role": "assistant", "content": "Go away."}

CASES = {
    "explicit_prompt": ({"prompt": "Hi", "chosen": " Hello", "rejected": " No"}, Example("Hi", " Hello", " No")),
    "implicit_prompt": (
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: yes",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: no",
        },
        Example("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", " yes", " no"),
    ),
    "chat": ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, Example([USER], [GOOD], [BAD])),
    "chat_implicit": ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, Example([USER], [GOOD], [BAD])),
    "sharegpt": (
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello!"},
            "rejected": {"from": "gpt", "value": "Go away."},
        },
        Example([USER], [GOOD], [BAD]),
    ),
    "unpaired": ({"prompt": "Hi", "completion": " Hello", "label": True}, Example("Hi", " Hello", None)),
}


@pytest.mark.parametrize("name", CASES)
def test_each_format_is_read_and_detected(name):
    row, example = CASES[name]
    assert getattr(formats, name)(row) == example
    assert formats.detect(row) is getattr(formats, name)


def test_unpaired_chat_and_undesirable_label():
    row = {"prompt": [USER], "completion": [BAD], "label": False}
    assert formats.unpaired(row) == Example([USER], None, [BAD])


def test_a_prompt_as_text_beside_whole_chats_is_the_implicit_chat_format():
    row = {"prompt": "Hi", "chosen": [USER, GOOD], "rejected": [USER, BAD]}
    assert formats.detect(row) is formats.chat_implicit


def test_a_column_of_nulls_does_not_count():
    assert formats.detect({"prompt": None, "chosen": "a", "rejected": "b"}) is formats.implicit_prompt


def test_unknown_keys_name_what_is_known():
    with pytest.raises(UserError, match=r"\['answer', 'question'\].*prompt\+chosen\+rejected"):
        formats.detect({"question": "a", "answer": "b"})


def test_a_row_of_a_known_format_without_a_value_is_a_bad_row():
    with pytest.raises(BadRowError, match="no 'rejected'"):
        formats.detect({"prompt": "a", "chosen": "b", "rejected": None})


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("explicit_prompt", {"chosen": None}, "no 'chosen'"),
        ("explicit_prompt", {"prompt": 3}, "'prompt' is not text"),
        ("explicit_prompt", {"rejected": " \n"}, "'rejected' is an empty response"),
        ("explicit_prompt", {"rejected": " Hello"}, "chosen and rejected are equal"),
        ("implicit_prompt", {"chosen": "Hello"}, "so its prompt cannot be found"),
        ("implicit_prompt", {"chosen": "\n\nHuman: z\n\nAssistant: yes"}, "do not share a prompt"),
        ("implicit_prompt", {"chosen": "\n\nHuman: a\n\nAssistant: "}, "'chosen' is an empty response"),
        ("chat", {"chosen": [{"role": "assistant"}]}, "not a list of messages with 'role' and 'content'"),
        ("chat", {"chosen": []}, "'chosen' is an empty response"),
        ("chat", {"prompt": []}, "'prompt' is an empty prompt"),
        ("chat_implicit", {"rejected": [BAD]}, "do not share a prompt"),
        ("chat_implicit", {"chosen": [GOOD], "rejected": [BAD]}, "do not share a prompt"),
        ("sharegpt", {"chosen": {"from": "robot", "value": "x"}}, "unknown speaker"),
        ("unpaired", {"label": 1}, "'label' is not true or false"),
        ("unpaired", {"completion": ""}, "'completion' is an empty response"),
    ],
)
def test_bad_rows_say_why(name, change, reason):
    row, _ = CASES[name]
    with pytest.raises(BadRowError, match=reason):
        getattr(formats, name)({**row, **change})
