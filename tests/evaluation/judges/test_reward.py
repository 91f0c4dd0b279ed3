import math
import subprocess
import sys
from dataclasses import replace

import pytest

from lit_tr.embedded import TINY
from lit_tr.errors import UserError
from lit_tr.evaluation.judges import JudgeReward
from lit_tr.evaluation.judges.templates import FOLDER
from lit_tr.evaluation.responses import Response, read
from lit_tr.iteration import MaxMin
from lit_tr.iteration.scores import complete_scores
from lit_tr.rewards import Candidate, Scorer
from tests.evaluation.judges.server import Server

PROMPT = "Name a river."
ANSWERS = ["The Rhine.", "It is the Rhine, in Europe.", "What?", "No."]


def candidates(texts=ANSWERS):
    return [Candidate(PROMPT, text) for text in texts]


def rated(prompt):
    """Judge as a model does: some good, one without a score, one with two, one in words alone."""
    if "in Europe" in prompt:
        return "It meets all steps but the last.\n\n[[4]]"
    if "The Rhine." in prompt:
        return "To the point. [[3]]"
    return "Score: 2" if "What?" in prompt else "[[1]] or rather [[2]]"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with Server(rated) as running:
        yield running


def reward(server, **more):
    return JudgeReward(**({"model": "m", "url": server.url, "concurrency": 1} | more))


def test_it_is_a_scorer():
    assert isinstance(JudgeReward(path=TINY), Scorer)
    assert (JudgeReward(path="a/policy").name, JudgeReward(model="m", url="http://h/v1").name) == ("policy", "m")


def test_a_match_is_read_and_what_cannot_be_read_is_no_score(server):
    # faults of earlier reproductions: a match that was never read (`groups()` is a tuple), -1 where nothing matched
    found = reward(server).explain(candidates())
    assert [one["score"] for one in found[:2]] == [3.0, 4.0]
    assert all(math.isnan(one["score"]) for one in found[2:])
    assert [one["unread"] for one in found] == [0, 0, 3, 3]


def test_each_response_is_judged_as_often_as_asked_with_the_papers_sampling(server):
    reward(server).score(candidates())
    assert len(server.asked) == 4
    assert set(server.asked.values()) == {3}
    asked = [request for request, _ in server.requests]
    assert {(one["temperature"], one["top_p"], one["max_tokens"]) for one in asked} == {(0.7, 0.9, 512)}
    assert not any("logprobs" in one for one in asked)


def test_the_mean_is_over_the_judgements_that_can_be_read(server):
    said = iter(["[[2]]", "hm", "[[5]]"])
    server.rule = lambda prompt: next(said)
    assert reward(server).explain(candidates(["The Rhine."])) == [{"score": 3.5, "unread": 1.0}]


@pytest.mark.parametrize("text", ["[[6]]", "[[-1]]", "[[four]]", "Score: 4", "4 of 5", "", "[[nan]]"])
def test_strictly(server, text):
    server.rule = lambda prompt: text
    assert math.isnan(reward(server, judgements=1).score(candidates(["The Rhine."]))[0])


def test_an_unreadable_judgement_is_not_the_worst_one(server, tmp_path):
    rows = [Response("0", PROMPT, text, sample) for sample, text in enumerate(ANSWERS)]
    pairs = MaxMin()(complete_scores(tmp_path / "scores.jsonl", rows, reward(server)))
    [pair] = pairs.found
    assert (pair.chosen, pair.rejected, pair.score_rejected) == (ANSWERS[1], ANSWERS[0], 3.0)
    assert pairs.unscored == 2
    assert [one.features for one in read(tmp_path / "scores.jsonl")] == [{"unread": n} for n in (0, 0, 3, 3)]


def test_nothing_is_asked_twice(server, tmp_path):
    cache = str(tmp_path / "answers.sqlite3")
    first = reward(server, cache=cache).score(candidates(ANSWERS[:2]))
    again = reward(server, cache=cache).score(candidates(ANSWERS[:2]))
    assert first == again == [3.0, 4.0]
    assert len(server.requests) == 6


def test_a_judge_that_dies_gives_no_score_and_the_same_call_goes_on(server, tmp_path):
    cache, file = str(tmp_path / "answers.sqlite3"), tmp_path / "scores.jsonl"
    rows = [Response("0", PROMPT, text, sample) for sample, text in enumerate(ANSWERS)]
    judge = reward(server, cache=cache)
    server.failures = [None, None, *[b"<html>"] * 3]
    with pytest.raises(UserError, match="m: 1 of 4 questions have no answer .* the same command asks the rest again"):
        complete_scores(file, rows, judge)
    assert not file.exists()
    url = server.url
    server.http.server_close()
    gone = JudgeReward(model="m", url=url, cache=cache, concurrency=1)
    gone.asker.model.retries = 0
    vars(gone.asker.model).pop("_client")
    with pytest.raises(UserError, match="the same command again, and it goes on"):
        complete_scores(file, rows, gone)
    assert not file.exists()
    with Server(rated) as other:
        found = complete_scores(file, rows, replace(gone, url=other.url))
    assert [one.score for one in found] == [3.0, 4.0, None, None]
    assert len(other.requests) == 12 - 3


KILLED = """
import os, sys
from lit_tr.evaluation.judges import JudgeReward
from lit_tr.rewards import Candidate
judge = JudgeReward(model="m", url=sys.argv[1], cache=sys.argv[2], concurrency=1)
keep = judge.asker.answers.keep
count = 0
def killed(*args):
    global count
    keep(*args)
    count += 1
    if count == 5:
        os.kill(os.getpid(), 9)
judge.asker.answers.keep = killed
judge.score([Candidate("Name a river.", text) for text in ("The Rhine.", "It is the Rhine, in Europe.")])
"""


def long_prompts_are_refused(server):
    """Let a server refuse for good what speaks of Europe, as if that were too long, and count it."""
    reply, refused = server.reply, []

    def answered(request, prompt, failure):
        if "in Europe" not in prompt:
            return reply(request, prompt, failure)
        refused.append(prompt)
        return reply(request, prompt, (400, {}, "this is too long"))

    server.reply = answered
    return refused


def test_a_question_that_is_refused_for_good_is_no_score_and_is_not_asked_again(server, tmp_path):
    refused, cache = long_prompts_are_refused(server), str(tmp_path / "answers.sqlite3")
    long = [f"It is the Rhine, in Europe {i}." for i in range(3)]  # 9 refusals, and those in a row are at most 3
    judge = reward(server, cache=cache)
    found = judge.explain(candidates([*long, "The Rhine."]))
    assert [math.isnan(one["score"]) for one in found] == [True, True, True, False]
    assert [one["unread"] for one in found] == [3, 3, 3, 0]
    assert (judge.asker.counts.asked, judge.asker.counts.failed, len(refused)) == (3, 9, 9)
    again = reward(server, cache=cache)
    assert math.isnan(again.score(candidates(long))[0])
    assert len(refused) == 9
    assert math.isnan(again.score(candidates(["in Europe"]))[0])  # alone, but it has answered others
    assert math.isnan(reward(server, cache=cache).score(candidates(["in Europe again"]))[0])


def test_many_samples_of_a_prompt_that_is_too_long_leave_the_others_their_scores(server):
    refused = long_prompts_are_refused(server)
    texts = [f"in Europe {i}" for i in range(16)] + [f"The Rhine. {i}" for i in range(48)]
    found = reward(server, judgements=1).score(candidates(texts))
    assert [math.isnan(one) for one in found] == [True] * 16 + [False] * 48
    assert len(refused) == 16


@pytest.mark.parametrize(
    ("failure", "said"),
    [((400, {}, "no"), "it refuses questions"), (401, "Set the key"), (429, "status 429"), ("die", "no answer from")],
    ids=str,
)
def test_a_server_that_refuses_all_or_is_down_ends_the_command_and_nothing_is_kept(server, failure, said):
    server.failures = [failure] * 99
    judge = reward(server, judgements=1)
    judge.asker.model.retries = 0
    vars(judge.asker.model).pop("_client")
    with pytest.raises(UserError, match=said):
        judge.score(candidates())
    server.failures = []
    assert judge.score(candidates())[:2] == [3.0, 4.0]


@pytest.mark.slow  # a process of its own
def test_after_kill_9_nothing_is_asked_twice(server, tmp_path):
    cache = str(tmp_path / "answers.sqlite3")
    done = subprocess.run([sys.executable, "-c", KILLED, server.url, cache], capture_output=True)
    assert done.returncode == -9, done.stderr
    assert reward(server, cache=cache).score(candidates(ANSWERS[:2])) == [3.0, 4.0]
    assert len(server.requests) == 6


def test_a_local_model_is_drawn_alike_in_any_company(tmp_path):
    (tmp_path / "own.txt").write_text("### user\n{prompt} {response}")
    how = {"path": TINY, "device": "cpu", "prompt": str(tmp_path / "own.txt"), "max_tokens": 8, "temperature": 1.0}
    how["dtype"] = "float32"
    judge = JudgeReward(**how, batch_size=4)
    judge.score(candidates())
    alone = JudgeReward(**how, batch_size=1)
    for one in reversed(candidates()):
        alone.score([one])
    texts = [[*one.asker.answers._base.execute("SELECT * FROM answers ORDER BY key")] for one in (judge, alone)]
    assert texts[0] == texts[1]
    assert len({answer for _, _, answer in texts[0]}) > 4


def test_a_small_model_is_read_from_the_probabilities_of_digits(tmp_path):
    (tmp_path / "own.txt").write_text("### user\n{prompt} {response}")
    judge = JudgeReward(path=TINY, device="cpu", prompt=str(tmp_path / "own.txt"), max_tokens=1, judgements=1)
    assert all(math.isnan(score) or 0 <= score <= 5 for score in judge.score(candidates()))


def test_the_score_comes_behind_its_reasons():
    # a prompt of an earlier reproduction asked for the score first: the reasons then only defend it
    text = (FOLDER / "additive.txt").read_text()
    assert text.index("{response}") < text.index("First say") < text.index("[[3]]")
    assert text.rstrip().endswith("[[3]].")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "give path, or else model"),
        ({"path": "a", "model": "m"}, "give path, or else model"),
        ({"path": "a", "url": "http://h/v1"}, "give path, or else model"),
        ({"path": "a", "prompt": "pairwise"}, "slot {response} is missing"),
        ({"path": "a", "judgements": 0}, "judgements must be at least 1"),
        ({"path": "a", "temperature": 0.0}, "give judgements 1"),
        ({"path": "a", "max_tokens": 1}, "give judgements 1"),
    ],
)
def test_mistakes_are_named(given, message):
    with pytest.raises(UserError, match=message):
        JudgeReward(**given)
