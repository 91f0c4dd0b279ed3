import pytest

from lit_tr.data import formats
from lit_tr.data.example import Example
from lit_tr.data.formats import FORMATS, SafeRLHF
from lit_tr.errors import BadRowError, UserError
from tests.data.formats.published import USER, answered, said, tldr_row

ROWS = {known.name: dict(known.row) for known in FORMATS}
HI = {"prompt": "Hi", "response_a": "A", "response_b": "B"}


def read(name, **change):
    named = getattr(formats, name)
    return (named() if isinstance(named, type) else named)({**ROWS[name], **change})


def short(example):
    return example.chosen, example.rejected, example.confidence, example.margin


@pytest.mark.parametrize(
    ("preference", "expected"),
    [
        (1, ("Lima.", "Cusco.", 1.0, 0.0)),
        (1.25, ("Lima.", "Cusco.", 0.75, 0.0)),
        ("1.75", ("Cusco.", "Lima.", 0.75, 0.0)),
        (2.0, ("Cusco.", "Lima.", 1.0, 0.0)),
        (1.5, ("Lima.", "Cusco.", 0.5, 0.0)),
        (0, ("Lima.", "Cusco.", 0.5, 0.0)),
    ],
)
def test_preferences_of_alpaca_eval(preference, expected):
    assert short(read("alpaca_eval", preference=preference)) == expected


@pytest.mark.parametrize(
    ("strength", "expected"),
    [(-3, ("1", "2", 1.0, 3.0)), (2, ("2", "1", 1.0, 2.0)), (0, ("1", "2", 0.5, 0.0)), ("-1", ("1", "2", 1.0, 1.0))],
)
def test_strengths_of_helpsteer(strength, expected):
    two = {"response_1": "1", "response_2": "2", "preference_strength": strength}
    assert short(read("helpsteer2", **two)) == expected
    three = read("helpsteer3", response1="1", response2="2", overall_preference=strength)
    chosen, rejected, *labels = expected
    assert short(three) == (answered(chosen), answered(rejected), *labels)


def test_turns_of_helpsteer2_become_messages():
    prompt = "Hi\n\n<extra_id_1>Assistant\nHello!\n<extra_id_1>User\nAnd now?"
    example = read("helpsteer2", prompt=prompt)
    assert example.prompt == prompt
    assert example.as_messages().prompt == said("Hi", "Hello!", "And now?")


@pytest.mark.parametrize(
    ("winner", "expected"),
    [
        ("model_a", ("A", "B", 1.0, 0.0)),
        ("model_b", ("B", "A", 1.0, 0.0)),
        ("tie", ("A", "B", 0.5, 0.0)),
        ("tie (bothbad)", ("A", "B", 0.5, 0.0)),
        ("both_bad", ("A", "B", 0.5, 0.0)),
    ],
)
def test_winners_of_the_arena(winner, expected):
    assert short(read("arena_texts", **HI, winner=winner)) == expected
    chats = {"conversation_a": said("Hi", "A"), "conversation_b": said("Hi", "B")}
    chosen, rejected, *labels = expected
    assert short(read("arena", **chats, winner=winner)) == (answered(chosen), answered(rejected), *labels)


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        ((1, 0, 0), ("A", "B", 1.0, 0.0)),
        ((False, True, False), ("B", "A", 1.0, 0.0)),
        (("0", "0", "1"), ("A", "B", 0.5, 0.0)),
    ],
)
def test_verdicts_of_lmsys(verdict, expected):
    columns = dict(zip(("winner_model_a", "winner_model_b", "winner_tie"), verdict, strict=True))
    example = read("lmsys_votes", prompt=["Hi"], response_a=["A"], response_b='["B"]', **columns)
    assert example.prompt == [USER]
    chosen, rejected, *labels = expected
    assert short(example) == (answered(chosen), answered(rejected), *labels)


def test_the_safer_response_or_the_better_one():
    row = ROWS["SafeRLHF"]  # the better one is 1, the safer one 0
    assert short(SafeRLHF()(row)) == ("Lima.", "Cusco.", 1.0, 0.0)
    assert short(SafeRLHF("safer")(row)) == ("Cusco.", "Lima.", 1.0, 0.0)
    with pytest.raises(UserError, match="by must be better or safer, not 'worse'"):
        SafeRLHF("worse")


def test_scores_of_webgpt_of_zero_are_a_tie():
    assert short(read("webgpt", score_0=0.0, score_1=0.0)) == ("Lima.", "Cusco.", 0.5, 0.0)
    assert read("webgpt", question="Hi").prompt == "Hi"


def test_votes_of_shp_may_be_missing():
    assert short(read("shp", score_A=None)) == ("Lima.", "Cusco.", 1.0, 0.0)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("tldr", {"choice": 2}, "'choice' is not the number of one of two responses"),
        ("tldr", {"choice": True}, "'choice' is not the number"),
        ("tldr", {"info": {"title": "My key", "subreddit": "pets", "post": None}}, "no 'post'"),
        ("tldr", {"info": 3}, "'info' is not an object"),
        ("tldr", {"summaries": tldr_row("a", " ", 0)["summaries"]}, "'text' is an empty response"),
        ("tldr", {"summaries": ["a", "b"]}, "'summaries' is not a list of objects"),
        ("tldr", {"summaries": [{"text": "a"}]}, "'summaries' are not two"),
        ("alpaca_eval", {"preference": float("nan")}, r"'preference' is not in \[1, 2\]"),
        ("alpaca_eval", {"preference": 3}, r"'preference' is not in \[1, 2\]"),
        ("alpaca_eval", {"output_2": "Lima."}, "chosen and rejected are equal"),
        ("shp", {"labels": 2}, "'labels' is not true or false"),
        ("helpsteer2", {"preference_strength": 4}, r"'preference_strength' is not in \[-3, 3\]"),
        ("helpsteer2", {"preference_strength": "much"}, "'preference_strength' is not in"),
        ("helpsteer2", {"response_1": ""}, "'response_1' is an empty response"),
        ("helpsteer3", {"context": []}, "'context' is an empty prompt"),
        ("arena", {"winner": "nobody"}, "'winner' is not model_a, model_b or a tie"),
        ("arena", {"conversation_b": said("Ho", "B")}, "do not share a prompt"),
        ("lmsys_votes", {"winner_tie": 1}, "not exactly one of the winners is true"),
        ("lmsys_votes", {"prompt": "Hi"}, "'prompt' is not JSON"),
        ("lmsys_votes", {"response_a": '["A", "B"]'}, "not one response for each turn"),
        ("lmsys_votes", {"response_a": "[null]"}, "'response_a' is not a list of texts"),
        ("SafeRLHF", {"better_response_id": True}, "'better_response_id' is not the number of one of two"),
        ("webgpt", {"score_1": "high"}, "'score_0' and 'score_1' are not numbers"),
        ("webgpt", {"question": {"id": "1"}}, "no 'full_text'"),
        ("webgpt", {"answer_0": ""}, "'answer_0' is an empty response"),
    ],
)
def test_bad_rows_say_why(name, change, reason):
    with pytest.raises(BadRowError, match=reason):
        read(name, **change)


def test_a_tie_is_an_example_of_its_own_labels():
    assert read("arena_texts", **HI, winner="tie") == Example("Hi", "A", "B", confidence=0.5)
