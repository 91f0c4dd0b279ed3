import json

import pytest
from trl.data_utils import extract_prompt

from lit_tr.data import formats
from lit_tr.data.example import Example
from lit_tr.errors import BadRowError
from tests.data.formats.published import BAD, CALL, GOOD, KIND, NOON, TOOL, USER, answered, said

CHAT = Example([USER], [GOOD], [BAD])
HH = "\n\nHuman: a\n\nAssistant:"


def row(prompt, chosen, rejected, **further):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **further}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (row("Hi", " Hello", " No"), Example("Hi", " Hello", " No")),
        (row([USER], [GOOD], [BAD]), CHAT),
        (row([USER], GOOD, BAD), CHAT),
        (row(USER, [GOOD], [BAD]), CHAT),
        (row([KIND, USER], [CALL, NOON, GOOD], [BAD]), Example([KIND, USER], [CALL, NOON, GOOD], [BAD])),
        (row([USER, CALL], [NOON, GOOD], [BAD]), Example([USER, CALL], [NOON, GOOD], [BAD])),
        # text beside messages
        (row("Hi", [GOOD], [BAD]), CHAT),
        (row([USER], "Hello!", " Go away."), CHAT),
        (row([USER], "Hello!", [BAD]), CHAT),
        (row("Hi", [GOOD], "Go away."), CHAT),
        # whole chats: the prompt is not trained on
        (row([USER], [USER, GOOD], [USER, BAD]), CHAT),
        (row([USER], [GOOD], [USER, BAD]), CHAT),
        (row([USER], [USER, GOOD], "Go away."), CHAT),
        (row([KIND, USER], [USER, GOOD], [KIND, USER, BAD]), Example([KIND, USER], [GOOD], [BAD])),
        (row([USER], [KIND, USER, GOOD], [KIND, USER, BAD]), Example([KIND, USER], [GOOD], [BAD])),
        (
            row([USER], said("Hi", "Hello!", "And now?", "Noon."), said("Hi", "Hello!", "And now?", "Late.")),
            Example(said("Hi", "Hello!", "And now?"), answered("Noon."), answered("Late.")),
        ),
        (row("Hi", [USER, GOOD], [USER, BAD]), CHAT),
        (row(" Hi\n", [KIND, USER, GOOD], [KIND, USER, BAD]), Example([KIND, USER], [GOOD], [BAD])),
        (  # the prompt is the last question of the chat
            row("And now?", said("Hi", "Hello!", "And now?", "Noon."), said("Hi", "Hello!", "And now?", "Late.")),
            Example(said("Hi", "Hello!", "And now?"), answered("Noon."), answered("Late.")),
        ),
        # dialogues in text
        (row(HH, " yes", " no"), Example(HH, " yes", " no")),
        (row(HH, f"{HH} yes", f"{HH} no"), Example(HH, " yes", " no")),
        (row("a", f"{HH} yes", f"{HH} no"), Example(HH, " yes", " no")),
        (
            row("Q: a\n\nAssistant:", "Q: a\n\nAssistant: y", "Q: a\n\nAssistant: n"),
            Example("Q: a\n\nAssistant:", " y", " n"),
        ),
        # chats as a CSV has them
        (row("Hi", str([USER, GOOD]), str([USER, BAD])), CHAT),
        (row(json.dumps([USER]), json.dumps([GOOD]), json.dumps([BAD])), CHAT),
        (row("Hi", "[{'role'} is a set]", "[1]"), Example("Hi", "[{'role'} is a set]", "[1]")),
        # an answer that repeats a question is one
        (row("Hi", "Hi there", "Hi you"), Example("Hi", "Hi there", "Hi you")),
        (row(HH, f"{HH} yes", " no"), Example(HH, f"{HH} yes", " no")),
    ],
)
def test_prompts_and_responses_of_any_kind(given, expected):
    assert formats.detect(given) is formats.explicit_prompt
    assert formats.explicit_prompt(given) == expected


@pytest.mark.parametrize(
    ("chosen", "rejected", "expected"),
    [
        (
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: yes",
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: no",
            Example("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", " yes", " no"),
        ),
        (  # turns of the assistant that follow each other are one response, and white space is one
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d\n\nAssistant: e",
            "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: ",
            Example("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:", " d\n\nAssistant: e", " "),
        ),
        ([USER, GOOD], [USER, BAD], CHAT),
        ([USER, GOOD, USER, GOOD], [USER, BAD, USER, GOOD], Example([USER], [GOOD, USER, GOOD], [BAD, USER, GOOD])),
        (
            [KIND, USER, CALL, NOON, GOOD],
            [KIND, USER, CALL, NOON, BAD],
            Example([KIND, USER, CALL, NOON], [GOOD], [BAD]),
        ),
        ([USER, GOOD, USER, BAD], [USER, GOOD], Example([USER], [GOOD, USER, BAD], [GOOD])),
    ],
)
def test_whole_dialogues_share_their_prompt(chosen, rejected, expected):
    assert formats.implicit_prompt({"chosen": chosen, "rejected": rejected}) == expected


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (said("Hi", "Hello!"), said("Hi", "Go away.")),
        (said("Hi", "Hello!", "And now?", "Noon."), said("Hi", "Hello!", "And now?", "Late.")),
        ([KIND, *said("Hi", "Hello!", "And now?", "Noon.")], [KIND, *said("Hi", "Hm.", "And now?", "Noon.")]),
    ],
)
def test_whole_chats_are_split_where_trl_splits_them(chosen, rejected):
    given = {"chosen": chosen, "rejected": rejected}
    expected = extract_prompt(given)
    found = formats.implicit_prompt(given)
    assert {"prompt": found.prompt, "chosen": found.chosen, "rejected": found.rejected} == expected


@pytest.mark.parametrize("column", ["query", "user_prompt", "messages", "Question"])
def test_responses_without_a_prompt_show_the_line_that_names_its_column(column):
    for chosen, rejected in (("a", "b"), ([GOOD], [BAD])):
        with pytest.raises(BadRowError) as caught:
            formats.implicit_prompt({"id": 1, column: "Hi", "chosen": chosen, "rejected": rejected})
        assert caught.value.detail == f"`columns: {{prompt: {column}}}` names its column"


@pytest.mark.parametrize(
    ("further", "expected"),
    [
        ({"score_chosen": 8.5, "score_rejected": 2}, 6.5),
        ({"chosen_score": "4", "rejected_score": "5"}, -1.0),
        ({"chosen-rating": 4.0, "rejected-rating": 1.5}, 2.5),
        ({"rating_chosen": 4.0, "rating_rejected": 1.5, "margin": 9}, 2.5),
        ({"reward_chosen": 4.0, "reward_rejected": 3.0, "score_chosen": 2.0, "score_rejected": 0.0}, 2.0),
        ({"margin": 2}, 2.0),
        ({"score_chosen": 8.5}, 0.0),
        ({"score_chosen": 8.5, "score_rejected": None}, 0.0),
        ({"score_chosen": "N/A", "score_rejected": 1}, 0.0),
        ({"score_chosen": 10**400, "score_rejected": 1}, 0.0),
    ],
)
def test_the_difference_of_scores_is_the_margin(further, expected):
    assert formats.explicit_prompt(row("Hi", " Hello", " No", **further)) == Example("Hi", " Hello", " No", expected)
    assert formats.implicit_prompt({"chosen": [USER, GOOD], "rejected": [USER, BAD], **further}).margin == expected


@pytest.mark.parametrize(
    ("further", "expected"),
    [
        ({"system": "Be kind."}, {"system": "Be kind."}),
        ({"system": " \n"}, {}),
        ({"system_prompt": "Be kind.\n", "system": None}, {"system": "Be kind."}),
        ({"tools": [TOOL | {"strict": None}]}, {"tools": [TOOL]}),
        ({"tools": '[{"name": "time"}]'}, {"tools": [{"name": "time"}]}),
        ({"tools": [], "images": [], "image": None, "chat_template_kwargs": {}}, {}),
        ({"chat_template_kwargs": {"thinking": False, "of_another": None}}, {"template": {"thinking": False}}),
        ({"chat_template_kwargs": '{"thinking": false}'}, {"template": {"thinking": False}}),
    ],
)
def test_what_belongs_to_the_prompt_is_kept(further, expected):
    assert formats.explicit_prompt(row("Hi", "a", "b", **further)) == Example("Hi", "a", "b", **expected)
    chat = formats.explicit_prompt(row([USER], [GOOD], [BAD], **further))
    system = [KIND] if expected.pop("system", None) else []
    assert chat == Example([*system, USER], [GOOD], [BAD], **expected)


def test_the_chat_keeps_its_own_system_prompt():
    given = row([{"role": "system", "content": "Be brief."}, USER], [GOOD], [BAD], system="Be kind.")
    assert formats.explicit_prompt(given).prompt == given["prompt"]


def test_text_parts_are_joined_and_keys_without_a_value_left_out():
    parts = [{"type": "text", "text": "Hel", "image": None}, {"type": "text", "text": "lo!"}]
    chosen = [{"role": "assistant", "content": parts, "tool_calls": None}]
    assert formats.explicit_prompt(row([{**USER, "name": None}], chosen, [BAD])) == CHAT


def test_nothing_is_changed_in_the_row():
    given = row([USER], [{**GOOD, "name": None}], [USER, BAD], system="Be kind.", tools=[TOOL])
    before = repr(given)
    formats.explicit_prompt(given)
    assert repr(given) == before


@pytest.mark.parametrize(
    ("format", "given", "reason"),
    [
        ("explicit_prompt", row("Hi", None, "b"), "no 'chosen'"),
        ("explicit_prompt", {"prompt": "Hi", "chosen": "a"}, "no 'rejected'"),
        ("explicit_prompt", row(3, "a", "b"), "'prompt' is not text"),
        ("explicit_prompt", row("Hi", "a", 3.5), "'rejected' is not text"),
        ("explicit_prompt", row("Hi", "a", " \n"), "'rejected' is an empty response"),
        ("explicit_prompt", row("Hi", "a", "a"), "chosen and rejected are equal"),
        ("explicit_prompt", row([USER], [USER], [USER, BAD]), "a response does not begin with the assistant"),
        ("explicit_prompt", row([USER], [USER], [BAD]), "a response does not begin with the assistant"),
        ("explicit_prompt", row([USER], [KIND], [BAD]), "a response does not begin with the assistant"),
        (
            "explicit_prompt",
            row([USER], said("Ho", "a"), said("Ho", "b")),
            "a response does not begin with the assistant",
        ),
        (
            "explicit_prompt",
            row([USER], said("Hi", "a", "c", "d"), said("Hi", "a", "e", "f")),
            "does not begin with the",
        ),
        ("explicit_prompt", row("Ho", [USER, GOOD], [USER, BAD]), "the prompt is not in the chats of the responses"),
        ("explicit_prompt", row("Hi", [USER, GOOD], [BAD]), "do not share a prompt"),
        ("explicit_prompt", row([USER], [{"role": "assistant"}], [BAD]), "messages with 'role' and 'content'"),
        (
            "explicit_prompt",
            row([USER], [{"role": "assistant", "content": [{"image": "a"}]}], [BAD]),
            "part that is not text",
        ),
        (
            "explicit_prompt",
            row([USER], [{"role": "assistant", "tool_calls": "time"}], [BAD]),
            "not a list of messages",
        ),
        ("explicit_prompt", row([USER], [{**GOOD, "content": ["Hi"]}], [BAD]), "a part that is not text"),
        ("explicit_prompt", row([USER], ["Hello!"], [BAD]), "not a list of messages"),
        ("explicit_prompt", row([USER], "[{'role': 'user', x}]", [BAD]), "nor one that is written as text"),
        ("explicit_prompt", row([USER], [], [BAD]), "'chosen' is an empty response"),
        (
            "explicit_prompt",
            row([USER], [{**GOOD, "content": [{"text": " "}]}], [BAD]),
            "'chosen' is an empty response",
        ),
        ("explicit_prompt", row([], [GOOD], [BAD]), "'prompt' is an empty prompt"),
        ("explicit_prompt", row("Hi", "a", "b", images=["a.png"]), "the row has 'images', and only text"),
        ("explicit_prompt", row("Hi", "a", "b", system=3), "'system' is not text"),
        ("explicit_prompt", row("Hi", "a", "b", tools="time"), "'tools' is not JSON"),
        ("explicit_prompt", row("Hi", "a", "b", tools="{}"), "'tools' is not a list"),
        ("explicit_prompt", row("Hi", "a", "b", chat_template_kwargs=[1]), "'chat_template_kwargs' is not an object"),
        ("implicit_prompt", {"chosen": "Hello", "rejected": HH + " no"}, "so its prompt cannot be found"),
        ("implicit_prompt", {"chosen": HH + " y", "rejected": HH.replace("a", "z", 1) + " n"}, "do not share a prompt"),
        ("implicit_prompt", {"chosen": HH, "rejected": HH + " no"}, "'chosen' is an empty response"),
        ("implicit_prompt", {"chosen": HH + " yes", "rejected": [USER, BAD]}, "'rejected' is not text"),
        ("implicit_prompt", {"chosen": [USER, GOOD], "rejected": HH + " no"}, "'rejected' is not a list of messages"),
        (  # a turn of the human within the assistant's
            "implicit_prompt",
            {"chosen": HH + " yes", "rejected": HH + " b\n\nHuman: c\n\nAssistant: d  Human: e\n\nAssistant: no"},
            "do not share a prompt",
        ),
        ("implicit_prompt", {"chosen": [USER, GOOD], "rejected": [BAD]}, "do not share a prompt"),
        ("implicit_prompt", {"chosen": [GOOD], "rejected": [BAD]}, "do not share a prompt"),
        ("implicit_prompt", {"chosen": [KIND, USER, GOOD], "rejected": [KIND, NOON, BAD]}, "do not share a prompt"),
        ("implicit_prompt", {"chosen": [USER, KIND], "rejected": [USER, BAD]}, "does not begin with the assistant"),
        (
            "sharegpt",
            {"conversations": [{"from": "robot", "value": "x"}], "chosen": GOOD, "rejected": BAD},
            "unknown speaker",
        ),
        ("sharegpt", {"conversations": [{"from": "human"}], "chosen": GOOD, "rejected": BAD}, "turns with 'from' and"),
        (
            "sharegpt",
            {"conversations": [{"from": 3, "value": "x"}], "chosen": GOOD, "rejected": BAD},
            "turns with 'from'",
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "function_call", "value": "x"}], "chosen": GOOD, "rejected": BAD},
            "not JSON",
        ),
        ("sharegpt", {"conversations": [], "chosen": GOOD, "rejected": BAD}, "'conversations' is an empty prompt"),
        ("alpaca_pairs", {"instruction": "a", "input": 3, "chosen": "b", "rejected": "c"}, "'input' is not text"),
        (
            "alpaca_pairs",
            {"instruction": "a", "history": [["a"]], "chosen": "b", "rejected": "c"},
            "'history' is not a list of",
        ),
        ("openai_pairs", {"input": [USER], "preferred_output": [GOOD], "non_preferred_output": [BAD]}, "not an object"),
        ("openai_pairs", {"input": {}, "preferred_output": [GOOD], "non_preferred_output": [BAD]}, "no 'messages'"),
        ("openai_pairs", {"input": {"messages": [USER]}, "preferred_output": [GOOD]}, "no 'non_preferred_output'"),
        ("swift_pairs", {"messages": [USER], "rejected_response": "b"}, "the chat has no message of the assistant"),
    ],
)
def test_bad_rows_say_why(format, given, reason):
    with pytest.raises(BadRowError, match=reason):
        getattr(formats, format)(given)
