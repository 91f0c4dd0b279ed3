import pytest

from lit_tr.embedded.task import GoldReward
from lit_tr.errors import UserError
from lit_tr.evaluation.page import Found, judge_of, with_scores
from tests.evaluation.page.folders import response


def test_responses_without_a_score_get_the_judges():
    rows = [response(0, "four", "p"), response(1, "six", "p", score=9.0)]
    found = with_scores(Found([], [], {"p": rows}), lambda prompt, text: len(prompt) + len(text))
    assert [row["score"] for row in found.responses["p"]] == [len("Prompt 0?") + 4, 9.0]


def test_a_judge_goes_by_its_import_path():
    assert judge_of("lit_tr.embedded.task.GoldReward") == GoldReward()
    with pytest.raises(UserError, match="--judge no.such: there is no such function"):
        judge_of("no.such")
