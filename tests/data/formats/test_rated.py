import pytest

from lit_tr.data.example import Example
from lit_tr.data.formats import CodeUltraFeedback, Ranking, Ratings, UltraFeedback
from lit_tr.errors import BadRowError, UserError
from tests.data.formats.published import ROWS, code_row, completion

ULTRA, CODE, RANKED, RATED = (
    ROWS[columns][1]
    for columns in (
        "instruction+completions",
        "instruction+responses+annotations",
        "prompt+responses+ranks",
        "instruction+generations+ratings",
    )
)


def short(examples):
    return [(one.chosen, one.rejected, one.margin) for one in examples]


@pytest.mark.parametrize(
    ("score", "pair"),
    [
        ("mean", ("Hello!", "No.", 3.0)),  # 4.5 and 1.5
        ("overall", ("No.", "Hm.", 4.0)),  # 10 and 6
        ("fine-grained", ("No.", "Hm.", 2.0)),  # 5 and 3
        ("helpfulness", ("Hello!", "No.", 4.0)),  # 5 and 1
        ("honesty", ("Hello!", "No.", 2.0)),  # 4 and 2
    ],
)
def test_scores_of_ultrafeedback(score, pair):
    assert short(UltraFeedback(score)(ULTRA)) == [pair]


def test_all_pairs_have_margins_and_the_best_first():
    # means 4.5, 3 and 1.5; the one without a rating is in no pair
    pairs = short(UltraFeedback(pairs="all")(ULTRA))
    assert pairs == [("Hello!", "Hm.", 1.5), ("Hello!", "No.", 3.0), ("Hm.", "No.", 1.5)]


def test_ratings_belong_to_the_response_of_their_model():
    pairs = short(CodeUltraFeedback(pairs="all")(CODE))
    assert pairs == [("sorted(x)", "x.sort()", 1.0), ("sorted(x)", "sort(x)", 3.0), ("x.sort()", "sort(x)", 2.0)]


def test_equal_ratings_and_equal_texts_make_no_pair():
    row = code_row("Sort it", a=("one", "5"), b=("two", "5"), c=("one", "1"), d=("three", "1"))
    pairs = short(CodeUltraFeedback(pairs="all")(row))
    assert pairs == [("one", "three", 4.0), ("two", "one", 4.0), ("two", "three", 4.0)]


def test_the_random_one_is_the_same_on_each_pass_and_differs_between_rows():
    format = UltraFeedback(pairs="best_random")
    rows = [{**ULTRA, "instruction": f"Say hi {number}"} for number in range(100)]
    first, again = ([short(format(row)) for row in rows] for _ in range(2))
    assert first == again
    others = [pair[1] for (pair,) in first]
    assert {pair[0] for (pair,) in first} == {"Hello!"}
    assert 30 < others.count("No.") < 70  # the other ones are "Hm."
    assert len(others) == others.count("No.") + others.count("Hm.")


def test_responses_in_order_are_ranked_when_the_format_is_named():
    row = {"prompt": "Hi", "responses": [" Hello", " Hm", " No"]}
    assert short(Ranking(pairs="all")(row)) == [(" Hello", " Hm", 1.0), (" Hello", " No", 2.0), (" Hm", " No", 1.0)]


def test_the_system_prompt_belongs_to_each_pair():
    assert Ratings()({**RATED, "system": "Be kind."}) == [Example("Hi", "Hello!", "No.", 3.0, system="Be kind.")]


@pytest.mark.parametrize(
    ("format", "row", "pairs"),
    [
        (Ranking("all"), {"prompt": "a", "responses": ["b", "", "c", None], "ranks": [1, 2, 3, 4]}, [("b", "c", 2.0)]),
        (Ranking("all"), {"prompt": "a", "responses": ["b", "c", "d"], "ranks": [2, "?", 1]}, [("d", "b", 1.0)]),
        (Ranking("all"), {"prompt": "a", "responses": ["b", " ", "c"]}, [("b", "c", 2.0)]),
        (
            Ranking("all"),
            {"prompt": "a", "answers": [{"answer": "b", "rank": 1}, {"answer": "c"}, None, {"answer": "d", "rank": 3}]},
            [("b", "d", 2.0)],
        ),
        (
            Ratings("all"),
            {"instruction": "a", "generations": ["b", None, "c"], "ratings": [1, 5, 4]},
            [("c", "b", 3.0)],
        ),
        (
            UltraFeedback(pairs="all"),
            {
                "instruction": "a",
                "completions": [
                    completion("b", 1.0, honesty="5"),
                    completion("  ", 1.0, honesty="4"),
                    completion(None, 1.0, honesty="3"),
                    {"response": "no rating", "annotations": None},
                    completion("c", 1.0, honesty="1"),
                ],
            },
            [("b", "c", 4.0)],
        ),
        (
            CodeUltraFeedback("all"),
            {**code_row("a", x=("b", "5"), y=("", "4"), z=("c", "1")), "system": None},
            [("b", "c", 4.0)],
        ),
    ],
)
def test_what_is_empty_or_not_rated_is_left_out(format, row, pairs):
    assert short(format(row)) == pairs


@pytest.mark.parametrize(
    ("format", "row", "reason"),
    [
        (UltraFeedback(), {**ULTRA, "completions": "text"}, "'completions' is not a list of objects"),
        (UltraFeedback(), {**ULTRA, "completions": []}, "fewer than two responses have text and a rating"),
        (UltraFeedback("kindness"), ULTRA, "fewer than two responses have text and a rating"),
        (UltraFeedback(), {**ULTRA, "completions": [completion("a", 1.0, a=1)]}, "fewer than two responses"),
        (UltraFeedback(), {**ULTRA, "completions": [{"response": "a", "annotations": [1]}]}, "not an object"),
        (UltraFeedback(), {**ULTRA, "completions": [completion(" ", 1.0, a=1)] * 2}, "fewer than two responses"),
        (UltraFeedback(), {**ULTRA, "completions": [completion(3, 1.0, a=1)]}, "a response is not text"),
        (UltraFeedback(), {**ULTRA, "completions": [completion("a", 1.0, a=1)] * 65}, "more than 64 responses"),
        (
            UltraFeedback(),
            {**ULTRA, "completions": [completion("a", 1.0, a=1e308), completion("b", 1.0, a=-1e308)]},
            "the margin is not a finite number",
        ),
        (UltraFeedback(), {**ULTRA, "instruction": None}, "no 'instruction'"),
        (CodeUltraFeedback(), {**CODE, "annotations": [{"model": None}]}, "no 'model'"),
        (CodeUltraFeedback(), {**CODE, "responses": [{"model": "a", "response": 3}]}, "a response is not text"),
        (Ranking(), {**RANKED, "ranks": [1, 2]}, "the ranks are not one for each response"),
        (Ranking(), {**RANKED, "ranks": 1}, "the ranks are not one for each response"),
        (Ranking(), {**RANKED, "ranks": [1, "?", None]}, "fewer than two responses"),
        (Ranking(), {**RANKED, "ranks": [1, 1, 1]}, "no response is rated above another one"),
        (Ranking(), {**RANKED, "responses": [" a", " b", 3]}, "'responses' is not a list of texts"),
        (Ranking(), {"prompt": "Hi", "answers": [{"answer": "a"}]}, "fewer than two responses"),
        (Ratings(), {**RATED, "ratings": [1]}, "the ratings are not one for each response"),
        (Ratings(), {**RATED, "images": ["a.png"]}, "the row has 'images'"),
    ],
)
def test_bad_rows_say_why(format, row, reason):
    with pytest.raises(BadRowError, match=reason):
        format(row)


@pytest.mark.parametrize("kind", [UltraFeedback, CodeUltraFeedback, Ranking, Ratings])
def test_unknown_pairs_are_named(kind):
    with pytest.raises(UserError, match=f"{kind.__name__}: pairs must be .*, not 'some'"):
        kind(pairs="some")
