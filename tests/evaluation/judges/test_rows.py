import pytest
from jsonargparse import ArgumentParser
from transformers import AutoTokenizer

from lit_tr.data import Rows
from lit_tr.data.formats import Ranking, Ratings
from lit_tr.data.formats.conversion import Conversion
from lit_tr.data.process import RowProcessor
from lit_tr.data.rows import Record
from lit_tr.embedded import TINY, resolve
from lit_tr.errors import BadRowError, UserError
from lit_tr.evaluation.answers import Answer, Asker, Question
from lit_tr.evaluation.judges import EvaluationRows, LLMScorer
from lit_tr.evaluation.judges.local import LocalModel
from lit_tr.evaluation.judges.reading import rating
from lit_tr.rewards import Candidate
from tests.data.formats.published import ROWS
from tests.evaluation.judges.test_llm import Rule

RATED = {
    "instruction": "1 + 1?",
    "generations": ["2", "3", "11"],
    "ratings": [5, 4, 1],
    "rationales": ["Yes.", "", "No."],
}


def chosen(format, row):
    return [one.chosen for one in format(row)]


def test_ratings_of_a_scale_become_scores_behind_their_reasons():
    # 5 -> 5, 4 -> 3.75, 1 -> 0
    assert chosen(EvaluationRows(scale=(1, 5)), RATED) == ["Yes.\n\n[[5]]", "[[4]]", "No.\n\n[[0]]"]


def test_ranks_take_the_scale_of_their_row():
    row = {"prompt": "1 + 1?", "responses": ["3", "2", "11"], "ranks": [2, 1, 3]}
    assert chosen(EvaluationRows(), row) == ["[[2]]", "[[5]]", "[[0]]"]  # 2.5 to even
    assert chosen(EvaluationRows(Ranking(), lowest=1, highest=9), row) == ["[[5]]", "[[9]]", "[[1]]"]


def test_reasons_of_ultrafeedback_are_its_critiques():
    row = dict(ROWS["instruction+completions"][1])
    row["completions"] = [{**one, "critique": "Fine."} for one in row["completions"]]
    # means 4.5, 3 and 1.5 of 1 to 5
    found = chosen(EvaluationRows(scale=(1, 5)), row)
    assert sorted(found) == ["Fine.\n\n[[1]]", "Fine.\n\n[[2]]", "Fine.\n\n[[4]]"]


def test_the_score_is_the_last_thing_and_judges_read_it():
    for one in EvaluationRows(scale=(1, 5))(RATED):
        assert one.rejected is None
        assert one.chosen.endswith("]]")
        assert rating(Answer(one.chosen), 0, 5) in (0, 4, 5)


def test_the_prompt_is_what_a_judge_is_shown():
    model = Rule(lambda prompt: Answer("[[1]]"))
    LLMScorer(Asker(model), prompt="additive", max_tokens=99).score([Candidate("1 + 1?", "2")])
    assert EvaluationRows()(RATED)[0].prompt.strip() == model.asked[0].messages[0][1]


@pytest.mark.parametrize("template", [None, "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"])
def test_ids_in_training_are_those_in_judging(template):
    tokenizer = AutoTokenizer.from_pretrained(resolve(TINY))
    judge = LocalModel(TINY, device="cpu")
    tokenizer.chat_template = judge.tokenizer.chat_template = template
    [trained, *_] = RowProcessor(tokenizer, 4096)(Record("row", RATED, Conversion(EvaluationRows())))
    asked = EvaluationRows()._template.fill({"prompt": "1 + 1?", "response": "2"})
    assert trained.prompt == judge._ids(Question(asked))


def test_rows_of_one_score_are_thinned_out():
    rows = [{**RATED, "instruction": f"{number} + 1?"} for number in range(200)]
    format = EvaluationRows(scale=(1, 5), keep={4: 0.25})
    scores = [text[-3] for row in rows for text in chosen(format, row)]
    assert (scores.count("5"), scores.count("0")) == (200, 200)
    assert 30 < scores.count("4") < 70
    assert scores == [text[-3] for row in rows for text in chosen(format, row)]


def test_it_is_named_in_a_configuration(tmp_path):
    made = ArgumentParser(exit_on_error=False)
    made.add_argument("--rows", type=Rows)
    init = {"path": "a.jsonl", "format": {"class_path": "lit_tr.evaluation.judges.EvaluationRows"}}
    init["format"]["init_args"] = {"scale": [1, 5], "keep": {4: 0.5}, "format": "lit_tr.data.formats.Ratings"}
    found = made.instantiate(made.parse_object({"rows": init})).rows.format
    assert found == EvaluationRows(Ratings(), scale=(1, 5), keep={4: 0.5})


@pytest.mark.parametrize(
    ("format", "row", "reason"),
    [
        (EvaluationRows(), {"prompt": "a", "chosen": "b", "rejected": "c"}, "no responses with ratings"),
        (EvaluationRows(), {**RATED, "ratings": [3, 3, 3]}, "no response is rated above another"),
        (EvaluationRows(scale=(1, 4)), RATED, "outside the scale"),
        (EvaluationRows(), {**RATED, "rationales": ["a [[1]]", "b", "c"]}, "another score"),
    ],
)
def test_rows_that_do_not_fit(format, row, reason):
    with pytest.raises(BadRowError, match=reason):
        format(row)


@pytest.mark.parametrize("given", [{"scale": (5, 1)}, {"lowest": 5}, {"prompt": "score"}])
def test_mistakes_are_named(given):
    with pytest.raises(UserError):
        EvaluationRows(**given)
