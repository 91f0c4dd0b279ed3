import math

import pytest

from lit_tr.evaluation.answers import Answer, Asker
from lit_tr.evaluation.judges import SelfReference
from lit_tr.rewards import Candidate
from tests.evaluation.judges.server import shown
from tests.evaluation.judges.test_llm import Rule

OWN = "The Rhine is one."


def judge(verdict):
    """Return a judge whose own answer is `OWN`, and what it was asked; `verdict` compares what it is shown."""
    made = SelfReference(model="m", url="http://h/v1")
    model = Rule(lambda prompt: verdict(*shown(prompt)) if "<answer A>" in prompt else Answer(OWN))
    made.asker = Asker(model)
    return made, model


def longer(first, second):
    return Answer("A" if len(first) > len(second) else "B")


def test_responses_are_compared_with_its_own_answer_in_both_orders():
    made, model = judge(longer)
    texts = ["No.", "The Rhine is a long river in Europe."]
    assert made.score([Candidate("Name a river.", text) for text in texts]) == [0.0, 1.0]
    own, *compared = model.asked
    assert own.messages == (("user", "Name a river."),)
    assert (own.max_tokens, own.temperature) == (512, 0.0)
    assert sorted(shown(one.messages[-1][1]) for one in compared) == sorted(
        [*([text, OWN] for text in texts), *([OWN, text] for text in texts)]
    )


def test_a_judge_that_prefers_what_stands_first_is_at_one_half():
    made, _ = judge(lambda first, second: Answer("A"))
    assert made.score([Candidate("Name a river.", "No.")]) == [0.5]


def test_one_order_alone_is_no_score():
    made, _ = judge(lambda first, second: Answer("A" if first == OWN else "neither"))
    assert math.isnan(made.score([Candidate("Name a river.", "No.")])[0])


def test_a_chat_is_answered_as_a_chat():
    made, model = judge(longer)
    chat = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    assert made.score([Candidate(chat, "Hello!")]) == pytest.approx([0.0])
    assert model.asked[0].messages == (("system", "Be short."), ("user", "Hi"))


def test_without_an_answer_of_its_own_there_is_no_score():
    made, model = judge(longer)
    says, model.says = model.says, lambda prompt: Answer("") if prompt == "Too long" else says(prompt)
    asked = [Candidate(prompt, "The Rhine is a long river.") for prompt in ("Too long", "Name a river.")]
    assert [math.isnan(score) for score in made.score(asked)] == [True, False]
    assert sum("<answer A>" in one.messages[-1][1] for one in model.asked) == 2
