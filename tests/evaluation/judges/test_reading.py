import math

import pytest

from lit_tr.evaluation.answers import Answer
from lit_tr.evaluation.judges.reading import preference, rating, verdict


def tokens(**shares):
    return Answer("?", {name.replace("_", " "): math.log(share) for name, share in shares.items()})


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({"A": 0.6, "B": 0.2, "The": 0.2}, 0.75),
        ({"A": 0.3, "_A": 0.3, "_B": 0.2}, 0.75),
        ({"A": 0.5, "The": 0.5}, 1.0),
        ({"B": 0.5, "The": 0.5}, 0.0),
        ({"The": 0.9, "a": 0.1}, None),
        ({"The": 0.99, "A": 0.005, "B": 0.001}, None),
    ],
)
def test_one_token_is_read_from_probabilities(shares, expected):
    found = preference(tokens(**shares))
    assert found == (pytest.approx(expected) if expected is not None else None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A", 1.0),
        (" B.\n", 0.0),
        ("tie", 0.5),
        ("Both are short. [[A]]", 1.0),
        ("[[B]], so [[ B ]]", 0.0),
        ("[[tie]]", 0.5),
        ("[[A]] or [[B]]", None),
        ("[[C]]", None),
        ("a", None),
        ("Answer A", None),
        ("A is better than B", None),
        ("", None),
        ("[[]]", None),
    ],
)
def test_text_is_read_strictly(text, expected):
    assert preference(Answer(text)) == expected


def test_no_answer_says_nothing():
    assert preference(None) is None
    assert math.isnan(rating(None, 1, 9))


def test_a_verdict_in_brackets_goes_before_the_text():
    assert verdict("B [[A]]") == "A"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("7", 7.0), ("Good. [[7.5]]", 7.5), ("[[10]]", None), ("0", None), ("seven", None), ("nan", None)],
)
def test_ratings_in_text(text, expected):
    found = rating(Answer(text), 1, 9)
    assert found == expected or (expected is None and math.isnan(found))


def test_ratings_of_one_token_are_means():
    answer = Answer("7", {"7": math.log(0.5), "9": math.log(0.25), "x": math.log(0.25)})
    assert rating(answer, 1, 9) == pytest.approx((7 * 0.5 + 9 * 0.25) / 0.75)
    assert rating(answer, 1, 10) == 7.0  # 10 is no token: the text counts
    assert math.isnan(rating(Answer("x", {"x": 0.0}), 1, 9))


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ({"9": 1e-6, "The": 0.9}, None),
        ({"9": 0.004, "1": 0.005, "The": 0.9}, None),
        ({"9": 0.004, "1": 0.008, "The": 0.9}, (9 * 0.004 + 0.008) / 0.012),
        ({"9": 0.006, "_9": 0.006, "The": 0.9}, 9.0),
    ],
)
def test_ratings_of_one_token_need_the_mass_that_preferences_need(shares, expected):
    found = rating(tokens(**shares), 1, 9)
    assert found == pytest.approx(expected) if expected else math.isnan(found)
    as_letters = {name.replace("9", "A").replace("1", "B"): share for name, share in shares.items()}
    assert (preference(tokens(**as_letters)) is None) == (expected is None)
