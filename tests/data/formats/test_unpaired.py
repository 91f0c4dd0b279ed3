import pytest

from lit_tr.data import formats
from lit_tr.data.example import Example
from lit_tr.errors import BadRowError
from tests.data.formats.published import BAD, CALL, GOOD, KIND, NOON, USER, answered, said


@pytest.mark.parametrize("label", [True, 1, 1.0, "True", "true", "1", " TRUE", "1.0"])
def test_labels_that_are_true(label):
    given = {"prompt": "Hi", "completion": " Hello", "label": label}
    assert formats.unpaired(given) == Example("Hi", " Hello", None)


@pytest.mark.parametrize("label", [False, 0, 0.0, "False", "false", "0", "0.0"])
def test_labels_that_are_false(label):
    given = {"prompt": "Hi", "completion": " Hello", "label": label}
    assert formats.unpaired(given) == Example("Hi", None, " Hello")


@pytest.mark.parametrize("label", [2, -1, 0.5, "yes", "", "2", [], {}, float("nan"), 10**400])
def test_other_labels_are_bad_rows(label):
    with pytest.raises(BadRowError, match="'label' is not true or false"):
        formats.unpaired({"prompt": "Hi", "completion": " Hello", "label": label})


@pytest.mark.parametrize(
    ("prompt", "completion", "expected"),
    [
        ([USER], [BAD], Example([USER], [BAD], None)),
        ([USER], "Go away.", Example([USER], [BAD], None)),
        ("Hi", [BAD], Example([USER], [BAD], None)),
        ([USER], [CALL, NOON, GOOD], Example([USER], [CALL, NOON, GOOD], None)),
        ([KIND, USER], [USER, GOOD], Example([KIND, USER], [GOOD], None)),  # the prompt is not learned
        ("Hi", [USER, GOOD], Example([USER], [GOOD], None)),
        (
            [USER],
            said("Hi", "Hello!", "And now?", "Noon."),
            Example(said("Hi", "Hello!", "And now?"), answered("Noon."), None),
        ),
    ],
)
def test_prompts_and_completions_of_any_kind(prompt, completion, expected):
    given = {"prompt": prompt, "completion": completion}
    assert formats.completion(given) == expected
    assert formats.unpaired({**given, "label": 0}) == Example(expected.prompt, None, expected.chosen)


def test_scores_make_no_margin_of_one_response():
    given = {"prompt": "Hi", "completion": "Hello", "margin": 2.0, "score_chosen": 2.0, "score_rejected": 1.0}
    assert formats.completion(given).margin == 0


@pytest.mark.parametrize(
    ("format", "given", "reason"),
    [
        ("unpaired", {"prompt": "Hi", "completion": "", "label": 1}, "'completion' is an empty response"),
        ("unpaired", {"prompt": "Hi", "completion": "a"}, "no 'label'"),
        ("unpaired", {"prompt": "Hi", "label": 1}, "no 'completion'"),
        ("completion", {"prompt": [USER], "completion": [USER]}, "does not begin with the assistant"),
        ("completion", {"prompt": [USER], "completion": said("Ho", "a")}, "does not begin with the assistant"),
        ("completion", {"prompt": "Hi", "completion": "a", "images": ["a.png"]}, "the row has 'images'"),
        ("dialogue", {"messages": [USER]}, "the chat has no message of the assistant"),
        ("dialogue", {"messages": [KIND, GOOD]}, "the chat has no prompt before the assistant"),
        ("dialogue", {"messages": "Hi"}, "'messages' is not a list of messages"),
        ("dialogue", {"messages": []}, "'messages' is an empty prompt"),
        ("unpaired_sharegpt", {"conversations": [USER, GOOD]}, "no 'label'"),
        ("alpaca", {"instruction": "Greet.", "output": [1]}, "'output' is not a list of messages"),
        ("generation", {"generation": "a"}, "no 'prompt'"),
    ],
)
def test_bad_rows_say_why(format, given, reason):
    with pytest.raises(BadRowError, match=reason):
        getattr(formats, format)(given)
