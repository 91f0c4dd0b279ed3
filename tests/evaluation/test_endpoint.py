import json
import os
import signal
import subprocess
import sys
import time

import pytest

from lit_tr.errors import UserError
from lit_tr.evaluation.answers import Answers, Asker, Question
from lit_tr.evaluation.endpoint import Endpoint
from lit_tr.evaluation.judges import LLMJudge, Pair
from lit_tr.evaluation.spending import LimitReached, Limits
from tests.evaluation.judges.server import KEY, PROMPT_TOKENS, TOKENS, Server, longest

pytest.importorskip("openai")
PAIRS = [Pair(f"Question {number}?", "long " * number + "answer", "short", str(number)) for number in range(1, 6)]
QUESTIONS = [Question((("user", f"<answer A>\n{i}\n</answer A> <answer B>\n\n</answer B>"),)) for i in range(6)]


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def judge(server, cache=None, judge_options=None, **options):
    asker = Asker(Endpoint("judge-1", server.url, **options), Answers(cache), complete=False)
    return LLMJudge(asker, **(judge_options or {}))


def test_both_orders_are_read_from_log_probs():
    with Server() as server:
        verdicts = judge(server).compare(PAIRS)
    for verdict in verdicts:
        assert verdict.first_ab == pytest.approx(0.9)
        assert verdict.first_ba == pytest.approx(0.1)
        assert verdict.preference == pytest.approx(0.9)
    request, headers = server.requests[0]
    assert (request["max_tokens"], request["temperature"], request["logprobs"], request["top_logprobs"]) == (
        1,
        0,
        True,
        20,
    )
    assert {name.lower(): value for name, value in headers.items()}["authorization"] == f"Bearer {KEY}"
    assert len(server.asked) == 2 * len(PAIRS)


def test_text_is_read_where_there_are_no_log_probs_and_what_cannot_be_read_is_counted():
    said = iter(["A", " B.", "I think A", "[[A]] or [[B]]"])
    with Server(rule=lambda prompt: next(said)) as server:
        verdicts = judge(server, concurrency=1).compare(PAIRS[:2])
    assert [(one.first_ab, one.first_ba, one.unparsable) for one in verdicts] == [
        (1.0, None, (0, 1)),
        (0.0, None, (0, 1)),
    ]
    assert [one.preference for one in verdicts] == [None, None]


def test_nothing_is_asked_twice(tmp_path):
    with Server() as server:
        first = judge(server, tmp_path / "answers.sqlite3")
        verdicts = first.compare(PAIRS + PAIRS)
        again = judge(server, tmp_path / "answers.sqlite3")
        assert again.compare(PAIRS) == verdicts[: len(PAIRS)]
        assert set(server.asked.values()) == {1}
        assert (first.asker.counts.asked, first.asker.counts.prompt_tokens) == (10, 10 * PROMPT_TOKENS)
        assert (again.asker.counts.asked, again.asker.counts.cached, again.asker.counts.prompt_tokens) == (0, 10, 0)
        third = again.again()
        third.compare(PAIRS)
        assert set(server.asked.values()) == {2}


@pytest.mark.parametrize(
    ("changed", "asks"),
    [
        ({}, 0),
        ({"max_tokens": 2}, 2),
        ({"temperature": 0.5}, 2),
        ({"criterion": "coherence"}, 2),
        ({"orders": "one"}, 0),
    ],
)
def test_the_cache_goes_by_prompt_and_sampling(changed, asks):
    answers = Answers()
    with Server() as server:
        asker = Asker(Endpoint("judge-1", server.url), answers)
        LLMJudge(asker).compare(PAIRS[:1])
        LLMJudge(asker, **changed).compare(PAIRS[:1])
        assert asker.counts.asked == 2 + asks
        LLMJudge(Asker(Endpoint("judge-2", server.url), answers)).compare(PAIRS[:1])
        assert len(server.requests) == 4 + asks


@pytest.mark.parametrize(
    "failures", [[429], [(429, {"retry-after": "0.2"}, "slow down")], [500], [503, 502], ["die"], [408]], ids=str
)
def test_passing_failures_are_asked_again(failures):
    with Server(failures=failures) as server:
        made = judge(server, concurrency=1)
        verdicts = made.compare(PAIRS[:2])
    assert [one.preference for one in verdicts] == pytest.approx([0.9, 0.9])
    assert sum(server.asked.values()) == 4 + len(failures)
    assert set(server.answered.values()) == {1}
    assert (made.asker.counts.asked, made.asker.counts.prompt_tokens) == (4, 4 * PROMPT_TOKENS)


def test_retry_after_is_waited_for():
    with Server(failures=[(429, {"retry-after": "1.2"}, "slow down")]) as server:
        judge(server, judge_options={"orders": "one"}).compare(PAIRS[:1])
    assert server.times[1] - server.times[0] >= 1.2


def test_a_slow_answer_is_asked_again():
    with Server(failures=["slow"]) as server:
        verdicts = judge(server, concurrency=1, timeout=0.5).compare(PAIRS[:1])
    assert verdicts[0].preference == pytest.approx(0.9)
    assert sum(server.asked.values()) == 3


MALFORMED = [b"", b'{"choices": [', b"<html>", b"[1]", b'{"choices": []}', b'{"choices": [{"message": null}]}', b"null"]
MALFORMED += [
    b'{"choices": [{"message": {"content": "A"}, "logprobs": {"content": [{"top_logprobs": [{"token": 5}]}]}}]}'
]


@pytest.mark.parametrize("body", MALFORMED, ids=str)
def test_a_malformed_answer_is_asked_again(body):
    with Server(failures=[body]) as server:
        verdicts = judge(server, concurrency=1).compare(PAIRS[:1])
    assert verdicts[0].preference == pytest.approx(0.9)
    assert sum(server.asked.values()) == 3


def test_a_question_without_a_right_answer_is_counted_and_asked_again_in_the_next_run(tmp_path):
    with Server(failures=[b"<html>"] * 3) as server:
        made = judge(server, tmp_path / "a", concurrency=1)
        verdicts = made.compare(PAIRS[:2])
        assert [one.unparsable for one in verdicts] == [(1, 0), (0, 0)]
        assert (made.asker.counts.asked, made.asker.counts.failed) == (3, 1)
        assert "malformed" in made.asker.model.last_failure
        again = judge(server, tmp_path / "a")
        assert [one.preference for one in again.compare(PAIRS[:2])] == pytest.approx([0.9, 0.9])
        assert (again.asker.counts.asked, again.asker.counts.cached) == (1, 3)


def test_a_refused_question_is_counted_and_many_in_a_row_stop_the_run():
    refusal = (400, {}, "the prompt is too long")
    with Server(failures=[refusal]) as server:
        made = judge(server, concurrency=1)
        assert [one.unparsable for one in made.compare(PAIRS[:1])] == [(1, 0)]
    with Server(failures=[refusal] * 99) as server:
        with pytest.raises(UserError, match="10 questions in a row .* the prompt is too long"):
            judge(server, concurrency=1).compare([Pair(str(i), "a", "b") for i in range(20)])
        assert len(server.requests) == 10


@pytest.mark.parametrize(
    ("word", "message", "left"),
    [
        ("logprobs", "logprobs are not supported", {"max_tokens", "temperature"}),
        (
            "max_completion_tokens",
            "use 'max_completion_tokens' instead",
            {"max_completion_tokens", "temperature", "logprobs", "top_logprobs"},
        ),
        ("temperature", "'temperature' must be 1", {"max_tokens", "logprobs", "top_logprobs"}),
    ],
)
def test_what_a_server_does_not_take_is_left_out_and_told(word, message, left):
    with Server(failures=[(400, {}, message)]) as server:
        made = judge(server, concurrency=1)
        assert made.compare(PAIRS[:1])[0].preference is not None
    assert [{*request} - {"model", "messages"} for request, _ in server.requests[1:]] == [left, left]
    assert len(made.asker.model.notes) == 1


@pytest.mark.parametrize(("status", "says"), [(401, "OPENAI_API_KEY"), (403, "OPENAI_API_KEY"), (404, "url and model")])
def test_what_will_not_pass_stops_at_once(status, says):
    with Server(failures=[(status, {}, f"wrong key {KEY}")] * 9) as server:
        with pytest.raises(UserError, match=says) as caught:
            judge(server, concurrency=1).compare(PAIRS)
        assert len(server.requests) == 1
    assert KEY not in str(caught.value)
    assert "***" in str(caught.value)


def test_a_server_that_dies_half_way_loses_nothing(tmp_path):
    with Server(failures=[None] * 5 + ["die"] * 99) as server:
        with pytest.raises(UserError, match="no answer from http://127.0.0.1.*run the same command again"):
            judge(server, tmp_path / "a", concurrency=2, retries=0).compare(PAIRS)
        server.failures.clear()
        made = judge(server, tmp_path / "a")
        assert [one.preference for one in made.compare(PAIRS)] == pytest.approx([0.9] * 5)
    assert set(server.answered.values()) == {1}
    assert made.asker.counts.cached == 5


def test_no_server():
    with Server() as server:
        pass
    with pytest.raises(UserError, match="no answer from .* after 1 tries"):
        judge(server, retries=0).compare(PAIRS)


@pytest.mark.parametrize(
    "limits",
    [Limits(tokens=4 * (PROMPT_TOKENS + TOKENS)), Limits(cost=4.04e-4, prompt_price=1.0, price=1.0)],
    ids=["tokens", "cost"],
)
def test_a_limit_is_kept_and_what_was_paid_is_kept(tmp_path, limits):
    with Server() as server:
        for _ in range(2):
            before = len(server.requests)
            made = judge(server, tmp_path / "a", limits=limits, concurrency=3)
            with pytest.raises(LimitReached, match="run the same command again"):
                made.compare(PAIRS)
            spent = made.asker.model.spending
            assert limits.allow(spent.prompt_tokens, spent.tokens)
            assert len(server.requests) - before in (3, 4)  # a fourth may be estimated higher than what is left
        verdicts = judge(server, tmp_path / "a").compare(PAIRS)
        assert [one.preference for one in verdicts] == pytest.approx([0.9] * 5)
        assert set(server.asked.values()) == {1}


def test_tokens_are_estimated_where_a_server_counts_none():
    with Server(usage=False) as server:
        made = judge(server)
        made.compare(PAIRS[:1])
    assert made.asker.counts.prompt_tokens > 100
    assert "estimated" in made.asker.model.notes[0]


KILLED = """
import sys
from lit_tr.evaluation.answers import Answers, Asker, Question
from lit_tr.evaluation.endpoint import Endpoint
asker = Asker(Endpoint("judge-1", sys.argv[1], concurrency=1), Answers(sys.argv[2]))
asker.ask([Question((("user", f"<answer A>\\n{i}\\n</answer A> <answer B>\\n\\n</answer B>"),)) for i in range(6)])
"""


def test_nothing_is_asked_twice_after_a_kill(tmp_path):
    def slowly(prompt):
        time.sleep(0.3)
        return longest(prompt)

    with Server(rule=slowly) as server:
        process = subprocess.Popen([sys.executable, "-c", KILLED, server.url, tmp_path / "a"])
        while len(server.answered) < 3:
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        asker = Asker(Endpoint("judge-1", server.url), Answers(tmp_path / "a"))
        assert None not in asker.ask(QUESTIONS)
        assert asker.counts.cached >= 2  # the third may have been on its way
        assert sorted(server.asked.values())[:5] == [1] * 5
        assert max(server.asked.values()) <= 2


def test_the_key_is_nowhere_on_disk(tmp_path):
    with Server(rule=lambda prompt: f"Your key is {KEY}") as server:
        made = judge(server, tmp_path / "answers.sqlite3", judge_options={"max_tokens": 9})
        made.compare(PAIRS)
    assert made.asker.counts.asked == 10
    assert [path for path in tmp_path.rglob("*") if KEY.encode() in path.read_bytes()] == []
    assert KEY not in repr(made)
    assert KEY not in json.dumps(made.asker.model.notes)


def test_a_key_is_needed_where_no_address_is_given(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="environment variable OPENAI_API_KEY"):
        Endpoint("gpt")
    assert Endpoint("gpt", "http://127.0.0.1:1/v1").name == "gpt"


@pytest.mark.parametrize("options", [{"concurrency": 0}, {"retries": -1}, {"timeout": 0}])
def test_numbers_are_checked(options):
    with pytest.raises(UserError, match="Endpoint"):
        Endpoint("gpt", "http://127.0.0.1:1/v1", **options)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"lit-tr\[evaluation\]"):
        Endpoint("gpt", "http://127.0.0.1:1/v1")
