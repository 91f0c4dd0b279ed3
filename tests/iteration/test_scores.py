import json
import math
import os
from functools import partial

import pytest

from lit_tr.errors import UserError
from lit_tr.evaluation.responses import Response, read
from lit_tr.iteration import scores
from lit_tr.iteration.scores import Elsewhere, complete_scores
from lit_tr.rewards import Ensemble, FunctionScorer, WhiteBox

ASK = "Describe a cold river."


def candidates(count, start=0):
    return [Response(f"{i}", ASK, "x" * (i + 1), 0, "round_0") for i in range(start, count)]


def length(prompt, response):
    return float(len(response))


def test_scores_are_kept_with_features_and_nothing_is_scored_twice(tmp_path):
    asked, path = [], tmp_path / "scores.jsonl"

    def counted(prompt, response):
        asked.append(response)
        return length(prompt, response)

    some, every, told = candidates(3), candidates(5), []
    complete_scores(path, some, FunctionScorer(counted))
    before = path.read_bytes()
    found = complete_scores(path, every[::-1], FunctionScorer(counted), told.append)
    assert [one.score for one in found] == [5, 4, 3, 2, 1]  # in the order that was asked for
    assert asked == ["x", "xx", "xxx", "xxxxx", "xxxx"]
    assert told == [2]
    assert path.read_bytes().startswith(before)
    complete_scores(path, every, FunctionScorer(counted))
    assert len(asked) == 5
    text = "The river is icy and cold."
    [one] = complete_scores(tmp_path / "white.jsonl", [Response("0", ASK, text)], WhiteBox(relevance=0.0))
    assert {*one.features} == {"length", "repetition", "closed"}
    assert one.score == pytest.approx(one.features["length"] * one.features["repetition"])


def test_a_reward_that_dies_loses_nothing_and_is_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setattr(scores, "AT_ONCE", 2)
    path, asked, alive = tmp_path / "scores.jsonl", [], []

    def judge(prompt, response):
        if len(response) == 4 and not alive:
            raise ConnectionError("no route to the judge")
        asked.append(response)
        return length(prompt, response)

    said = r"reward judge: it failed \(ConnectionError: no route to the judge\).*scores.jsonl: fix it, and the same co"
    with pytest.raises(UserError, match=said) as error:
        complete_scores(path, candidates(5), FunctionScorer(judge))
    assert isinstance(error.value.__cause__, ConnectionError)
    assert [one.score for one in read(path)] == [1, 2]
    alive.append(True)
    asked.clear()
    assert [one.score for one in complete_scores(path, candidates(5), FunctionScorer(judge))] == [1, 2, 3, 4, 5]
    assert asked == ["xxx", "xxxx", "xxxxx"]


def test_what_has_no_score_is_kept_as_such(tmp_path):
    gaps = FunctionScorer(lambda prompt, response: math.nan if len(response) == 2 else 1.0, "gaps")
    assert [one.score for one in complete_scores(tmp_path / "a.jsonl", candidates(3), gaps)] == [1.0, None, 1.0]
    assert [one.score for one in read(tmp_path / "a.jsonl")] == [1.0, None, 1.0]


def test_no_score_at_all_is_an_error_that_leaves_no_file(tmp_path):
    path, silent = tmp_path / "a.jsonl", FunctionScorer(lambda prompt, response: math.nan, "silent")
    with pytest.raises(UserError, match="reward silent: it gives no score to any of 3 responses. Fix it"):
        complete_scores(path, candidates(3), silent)
    assert [one.score for one in complete_scores(path, candidates(3), FunctionScorer(length))] == [1, 2, 3]


def test_scores_of_other_responses_are_refused(tmp_path):
    path = tmp_path / "a.jsonl"
    complete_scores(path, candidates(3), FunctionScorer(length))
    other = [Response("0", ASK, "another"), *candidates(3, start=1)]
    with pytest.raises(UserError, match=r"a.jsonl: it has a score of a response that is no candidate, \('0', 0\)"):
        complete_scores(path, other, FunctionScorer(length))


def test_a_mistake_of_the_reward_is_its_own_message(tmp_path):
    def refuses(prompt, response):
        raise UserError("give reference answers")

    with pytest.raises(UserError, match="^give reference answers$"):
        complete_scores(tmp_path / "a.jsonl", candidates(1), FunctionScorer(refuses))


def ensemble():
    return Ensemble(
        [FunctionScorer(length), FunctionScorer(lambda prompt, response: -length(prompt, response), "less")]
    )


def test_statistics_are_those_of_all_candidates_after_any_stop(tmp_path):
    """Lengths 1, 2, 3 have the mean 2 and the deviation sqrt(2/3); a candidate that comes later changes neither."""
    path, wide = tmp_path / "scores.jsonl", math.sqrt(2 / 3)
    complete_scores(path, candidates(3), ensemble())
    [kept] = json.loads((tmp_path / "scores.statistics.json").read_text())["statistics"][:1]
    assert kept == pytest.approx([2.0, wide])
    found = complete_scores(path, candidates(9), ensemble())
    assert [one.features["length"] for one in found] == pytest.approx([(i + 1 - 2) / wide for i in range(9)])


def test_statistics_can_be_those_of_another_file(tmp_path):
    shared = tmp_path / "shared.json"
    complete_scores(tmp_path / "a.jsonl", candidates(3), ensemble(), statistics=shared)
    [one] = complete_scores(tmp_path / "b.jsonl", candidates(9, start=8), ensemble(), statistics=shared)
    assert one.features["length"] == pytest.approx((9 - 2) / math.sqrt(2 / 3))
    assert not (tmp_path / "b.statistics.json").exists()


def white_box():
    """A reward with statistics, the frequencies of words."""
    return Ensemble([WhiteBox(), FunctionScorer(length)])


def told_where(prompt, response):
    """A score, and who gave it: each process has a number of its own."""
    return len(response) + os.getpid() * 1000.0


@pytest.mark.slow  # each process imports for itself
def test_several_processes_score_as_one_does_and_go_on(tmp_path):
    every = [Response(f"{i}", ASK, f"A cold river{'!' * i} and {i} more.") for i in range(150)]
    path = tmp_path / "scores.jsonl"
    complete_scores(path, every[:20], white_box())
    elsewhere = Elsewhere(white_box, ["cpu", "cpu"])
    found = complete_scores(path, every, white_box(), elsewhere=elsewhere)
    statistics = path.with_suffix(".statistics.json")
    assert found == complete_scores(tmp_path / "alone.jsonl", every, white_box(), statistics=statistics)
    assert len({one.score for one in found}) > 100
    assert [one.key for one in found] == [one.key for one in every]


@pytest.mark.slow
def test_what_scores_elsewhere_is_another_process_and_few_are_scored_here(tmp_path):
    scorer = FunctionScorer(told_where)
    elsewhere = Elsewhere(partial(FunctionScorer, told_where), ["cpu", "cpu"])
    few = complete_scores(tmp_path / "few.jsonl", candidates(64), scorer, elsewhere=elsewhere)
    assert {one.score // 1000 for one in few} == {os.getpid()}
    many = complete_scores(tmp_path / "many.jsonl", candidates(65), scorer, elsewhere=elsewhere)
    assert len({one.score // 1000 for one in many} - {os.getpid()}) == 2


class InBatches:
    """A reward whose scores name the batch that they were made in."""

    name = "in_batches"

    def score(self, candidates):
        return [1000.0 * len(candidates[0].response) + len(candidates)] * len(candidates)


@pytest.mark.slow
def test_batches_elsewhere_are_the_same_after_any_stop(tmp_path):
    every, elsewhere = candidates(150), Elsewhere(InBatches, ["cpu", "cpu"])
    whole, path = tmp_path / "whole.jsonl", tmp_path / "scores.jsonl"
    expected = complete_scores(whole, every, InBatches(), elsewhere=elsewhere)
    assert len({one.score for one in expected}) == 4
    lines = whole.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if json.loads(line)["score"] % 1000 == scores.AT_ONCE))
    assert complete_scores(path, every, InBatches(), elsewhere=elsewhere) == expected


def fails_there(prompt, response):
    raise ValueError("no such response")


@pytest.mark.slow
def test_what_goes_wrong_elsewhere_is_told_as_here(tmp_path):
    elsewhere = Elsewhere(partial(FunctionScorer, fails_there), ["cpu", "cpu"])
    with pytest.raises(UserError, match="reward fails_there: it failed .ValueError: no such response"):
        complete_scores(tmp_path / "scores.jsonl", candidates(65), FunctionScorer(fails_there), elsewhere=elsewhere)
