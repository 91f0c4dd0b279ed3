import sqlite3
import threading
from dataclasses import replace

import pytest

from lit_tr.errors import UserError
from lit_tr.evaluation.answers import Answer, Answers, Asker, Question

HELLO = Question((("user", "Hello"),))


class Echo:
    """A model that answers with the question, but for some that it leaves out."""

    name = "echo"

    def __init__(self, silent=()):
        self.silent, self.asked = silent, []

    def answer(self, questions, keep):
        self.asked += questions
        for one in questions:
            if one.messages[0][1] not in self.silent:
                keep(one, Answer(one.messages[0][1], {"A": -0.5}, 7, 1))


@pytest.mark.parametrize(
    "changed",
    [{"messages": (("system", "Hello"),)}, {"max_tokens": 2}, {"temperature": 0.1}, {"log_probs": False}, {"draw": 1}],
    ids=str,
)
def test_the_key_holds_model_prompt_and_sampling(changed):
    assert HELLO.key("a") == Question((("user", "Hello"),)).key("a")
    assert HELLO.key("a") != HELLO.key("b")
    assert HELLO.key("a") != replace(HELLO, **changed).key("a")
    assert len(HELLO.key("a")) == 64


def test_answers_are_on_disk(tmp_path):
    answer = Answer("Å\n", {"A": -1.5, " A": -2.0}, 3, 4)
    Answers(tmp_path / "new" / "a.sqlite3").keep("k", "m", answer)
    assert Answers(tmp_path / "new" / "a.sqlite3").known(["k", "other"]) == {"k": answer}


def test_many_keys_are_looked_up():
    answers = Answers()
    for number in range(1200):
        answers.keep(str(number), "m", Answer(str(number)))
    assert len(answers.known(map(str, range(2000)))) == 1200


def test_any_thread_may_keep():
    answers = Answers()
    threads = [threading.Thread(target=answers.keep, args=(str(i), "m", Answer(""))) for i in range(20)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(answers.known(map(str, range(20)))) == 20


def test_what_is_no_cache_is_named(tmp_path):
    (tmp_path / "a").write_text("this is a text, and it is long enough to be looked at" * 20)
    for path in (tmp_path / "a", tmp_path, tmp_path / "a" / "b"):
        with pytest.raises(UserError, match=rf"^{path}: it cannot be opened as a cache of answers \("):
            Answers(path).known(["k"])
        with pytest.raises(UserError, match="cannot be opened as a cache"):
            Answers(path).keep("k", "m", Answer(""))


def test_a_cache_is_made_at_its_first_use(tmp_path):
    answers = Answers(tmp_path / "new" / "a.sqlite3")
    assert [*tmp_path.iterdir()] == []
    assert answers.known(["k"]) == {}
    assert (tmp_path / "new" / "a.sqlite3").exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    answers = Answers(tmp_path / "a")
    answers.keep("j", "m", Answer(""))
    with sqlite3.connect(tmp_path / "a") as other:
        other.execute("DROP TABLE answers")
    with pytest.raises(UserError, match="an answer cannot be written"):
        answers.keep("k", "m", Answer(""))


def test_equal_questions_are_asked_once_and_counted():
    told, model = [], Echo(silent=("silent",))
    asker = Asker(model, complete=False)
    asker.watch = told.append
    silent = Question((("user", "silent"),))
    said = asker.ask([HELLO, silent, HELLO])
    assert [one and one.text for one in said] == ["Hello", None, "Hello"]
    assert model.asked == [HELLO, silent]
    counts = asker.counts
    assert (counts.asked, counts.cached, counts.failed, counts.prompt_tokens, counts.tokens) == (1, 0, 1, 7, 1)
    asker.ask([HELLO, silent])
    assert model.asked == [HELLO, silent, silent]
    assert (counts.asked, counts.cached, counts.failed) == (1, 1, 2)


def test_all_must_be_answered_but_what_a_model_that_answers_others_refuses():
    silent = Question((("user", "silent"),))
    asker = Asker(Echo(silent=("silent",)))
    with pytest.raises(
        UserError, match=r"echo: 1 of 2 questions have no answer \(it gives none\)\. What is answered is k"
    ):
        asker.ask([HELLO, silent])
    assert (asker.counts.asked, asker.counts.failed) == (1, 1)
    asker.model.refused, asker.model.last_failure = [silent], "it is too long"
    with pytest.raises(UserError, match=r"1 of 1 questions have no answer \(it is too long\)"):
        Asker(asker.model).ask([silent])  # it may refuse all
    assert asker.ask([silent]) == [Answer("")]
    asked = len(asker.model.asked)
    assert asker.ask([silent, HELLO]) == [Answer(""), Answer("Hello", {"A": -0.5}, 7, 1)]
    assert (len(asker.model.asked), asker.counts.failed) == (asked, 2)
