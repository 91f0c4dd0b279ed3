import pytest

from lit_tr.data.rated import CodeUltraFeedback, Ranking, UltraFeedback
from lit_tr.errors import BadRowError, UserError
from tests.data.format_rows import ROWS, code_row, completion

ULTRA, CODE, RANKED = (ROWS[name][0] for name in ("UltraFeedback", "CodeUltraFeedback", "Ranking"))


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
    assert short(UltraFeedback(score, chat=False)(ULTRA)) == [pair]


def test_all_pairs_have_margins_and_the_best_first():
    # means 4.5, 3 and 1.5; the one without a rating is in no pair
    pairs = short(UltraFeedback(pairs="all", chat=False)(ULTRA))
    assert pairs == [("Hello!", "Hm.", 1.5), ("Hello!", "No.", 3.0), ("Hm.", "No.", 1.5)]


def test_ratings_belong_to_the_response_of_their_model():
    pairs = short(CodeUltraFeedback(pairs="all", chat=False)(CODE))
    assert pairs == [("sorted(x)", "x.sort()", 1.0), ("sorted(x)", "sort(x)", 3.0), ("x.sort()", "sort(x)", 2.0)]


def test_equal_ratings_and_equal_texts_make_no_pair():
    row = code_row("Sort it", a=("one", "5"), b=("two", "5"), c=("one", "1"), d=("three", "1"))
    pairs = short(CodeUltraFeedback(pairs="all", chat=False)(row))
    assert pairs == [("one", "three", 4.0), ("two", "one", 4.0), ("two", "three", 4.0)]


def test_the_random_one_is_the_same_on_each_pass_and_differs_between_rows():
    format = UltraFeedback(pairs="best_random", chat=False)
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
    assert Ranking(chat=True)(row)[0].prompt == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("format", "row", "reason"),
    [
        (UltraFeedback(), {**ULTRA, "completions": "text"}, "'completions' is not a list of objects"),
        (UltraFeedback(), {**ULTRA, "completions": []}, "no response is rated above another one"),
        (UltraFeedback("kindness"), ULTRA, "no response is rated above another one"),
        (UltraFeedback(), {**ULTRA, "completions": [{"response": "a"}]}, "no 'annotations'"),
        (UltraFeedback(), {**ULTRA, "completions": [{"response": "a", "annotations": [1]}]}, "not an object"),
        (UltraFeedback(), {**ULTRA, "completions": [completion(" ", 1.0, a=1)]}, "'response' is an empty response"),
        (UltraFeedback(), {**ULTRA, "completions": [completion("a", 1.0, a=1)] * 65}, "more than 64 responses"),
        (
            UltraFeedback(),
            {**ULTRA, "completions": [completion("a", 1.0, a=1e308), completion("b", 1.0, a=-1e308)]},
            "the margin is not a finite number",
        ),
        (UltraFeedback(), {**ULTRA, "instruction": None}, "no 'instruction'"),
        (CodeUltraFeedback(), {**CODE, "annotations": [{"model": None}]}, "no 'model'"),
        (CodeUltraFeedback(), {**CODE, "responses": [{"model": "a", "response": 3}]}, "'response' is not text"),
        (Ranking(), {**RANKED, "ranks": [1, 2]}, "the ranks are not a number for each response"),
        (Ranking(), {**RANKED, "ranks": [1, 2, "?"]}, "the ranks are not a number for each response"),
        (Ranking(), {**RANKED, "ranks": 1}, "the ranks are not a number for each response"),
        (Ranking(), {**RANKED, "ranks": [1, 1, 1]}, "no response is rated above another one"),
        (Ranking(), {**RANKED, "responses": [" a", " b", 3]}, "'responses' is not a list of texts"),
        (Ranking(), {**RANKED, "responses": [" a", " b", " "]}, "a response is empty"),
        (Ranking(), {"prompt": "Hi", "answers": [{"answer": "a"}]}, "the ranks are not a number for each response"),
    ],
)
def test_bad_rows_say_why(format, row, reason):
    with pytest.raises(BadRowError, match=reason):
        format(row)


@pytest.mark.parametrize("kind", [UltraFeedback, CodeUltraFeedback, Ranking])
def test_unknown_pairs_are_named(kind):
    with pytest.raises(UserError, match=f"{kind.__name__}: pairs must be .*, not 'some'"):
        kind(pairs="some")
