import pytest

from lit_tr.data.example import Example
from lit_tr.errors import BadRowError

KIND, USER = {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}


def said(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def answer(text):
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("Hi", said("Hi")),
        (" Hi \n", said("Hi")),
        ("\n\nHuman: Hi\n\nAssistant:", said("Hi")),
        ("\n\nHuman: Hi\n\nAssistant: ", said("Hi")),
        ("Human: Hi\n\nAssistant:", said("Hi")),
        ("\n\nHuman: a\n\nAssistant: b\nb\n\nHuman: c\n\nAssistant:", said("a", "b\nb", "c")),
        ("\n\nHuman: a\n\nHuman: b\n\nAssistant:", said("a\n\nb")),
        ("\n\nHuman: a\n\nAssistant: b\n\nAssistant: c\n\nHuman: d\n\nAssistant:", said("a", "b\n\nc", "d")),
        ("Is 'Human: a' a dialogue?", said("Is 'Human: a' a dialogue?")),
        ("\n\nHuman: Hi", said("Human: Hi")),  # no turn of the assistant is open
        ("Go on:\n\nHuman: a\n\nAssistant:", said("Go on:\n\nHuman: a\n\nAssistant:")),
        ("a\n\n<extra_id_1>Assistant\nb\n<extra_id_1>User\nc", said("a", "b", "c")),
        ("a\n<extra_id_1>Assistant\nb", said("a\n<extra_id_1>Assistant\nb")),
    ],
)
def test_text_becomes_messages(prompt, expected):
    found = Example(prompt, " yes\n", " no", 1.5, 0.75).as_messages()
    assert found == Example(expected, answer("yes"), answer("no"), 1.5, 0.75)


def test_turns_of_the_assistant_in_a_response_become_one_message():
    found = Example("\n\nHuman: Hi\n\nAssistant:", " a\n\nAssistant: b", " ").as_messages()
    assert found == Example([USER], answer("a\n\nb"), answer(""))
    plain = Example("Hi", "a\n\nAssistant: b", "c").as_messages()
    assert plain.chosen == answer("a\n\nAssistant: b")


def test_a_system_prompt_becomes_the_first_message():
    tools = [{"name": "time"}]
    example = Example("Hi", "yes", None, system=" Be kind.\n", tools=tools, template={"thinking": False})
    expected = Example([KIND, USER], answer("yes"), None, tools=tools, template={"thinking": False})
    assert example.as_messages() == expected
    assert Example([USER], answer("yes"), None, system="Be kind.").as_messages() == Example(
        [KIND, USER], answer("yes"), None
    )


def test_messages_are_left_as_they_are():
    example = Example([USER], answer(" yes "), None, labels={"score": (1.0, 2.0)})
    assert example.as_messages() is example
    assert Example("Hi", answer(" yes "), "no").as_messages() == Example([USER], answer(" yes "), answer("no"))


def test_responses_that_differ_by_white_space_are_equal_as_messages():
    with pytest.raises(BadRowError, match="chosen and rejected are equal"):
        Example("Hi", " yes", "yes\n").as_messages()


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
