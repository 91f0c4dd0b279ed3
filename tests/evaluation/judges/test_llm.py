import math

import pytest

from lit_tr.errors import UserError
from lit_tr.evaluation.answers import Answer, Asker
from lit_tr.evaluation.judges import ByScore, LLMJudge, LLMScorer, Pair
from lit_tr.rewards import Candidate
from tests.evaluation.judges.server import shown

PAIR = Pair("Name a river.", "The Rhine.", "A very {first} long answer", "7", reference_answer="Any river.")


class Rule:
    """A language model on this machine that answers by a function of the prompt."""

    name = "rule"

    def __init__(self, says):
        self.says, self.asked = says, []

    def answer(self, questions, keep):
        for one in questions:
            self.asked.append(one)
            keep(one, self.says(one.messages[-1][1]))


def longer(prompt):
    first, second = shown(prompt)
    return Answer("A" if len(first) > len(second) else "B")


def test_both_orders_are_asked_and_slots_in_responses_stay():
    model = Rule(longer)
    [verdict] = LLMJudge(Asker(model)).compare([PAIR])
    assert (verdict.first_ab, verdict.first_ba, verdict.preference) == (0.0, 1.0, 0.0)
    both = [PAIR.response_a, PAIR.response_b]
    assert sorted(shown(one.messages[-1][1]) for one in model.asked) == sorted([both, both[::-1]])
    assert all("Name a river." in one.messages[-1][1] and one.max_tokens == 1 and one.log_probs for one in model.asked)


def test_one_order_is_asked_on_demand():
    model = Rule(lambda prompt: Answer("[[tie]]"))
    [verdict] = LLMJudge(Asker(model), orders="one", max_tokens=50, prompt="pairwise_explained").compare([PAIR])
    assert (verdict.first_ab, verdict.first_ba, verdict.preference, len(model.asked)) == (0.5, None, 0.5, 1)
    assert not model.asked[0].log_probs


def test_each_criterion_is_a_question_of_its_own():
    model = Rule(lambda prompt: Answer("A"))
    asker = Asker(model)
    for name in ("coherence", "harmlessness"):
        LLMJudge(asker, name, orders="one").compare([PAIR])
    texts = [one.messages[-1][1] for one in model.asked]
    assert ["coherence:" in text for text in texts] == [True, False]
    assert ["harmlessness:" in text for text in texts] == [False, True]


def test_a_prompt_may_show_the_reference_answer(tmp_path):
    (tmp_path / "mine.txt").write_text("### user\n{prompt} {reference} {first} {second}")
    model = Rule(lambda prompt: Answer("A"))
    judge = LLMJudge(Asker(model), prompt=str(tmp_path / "mine.txt"), orders="one")
    judge.compare([PAIR])
    assert "Any river." in model.asked[0].messages[-1][1]
    with pytest.raises(UserError, match="the responses to prompt '9' have none"):
        judge.compare([Pair("a", "b", "c", "9")])
    (tmp_path / "score.txt").write_text("### user\n{prompt} {reference} {response}")
    scorer = LLMScorer(Asker(model), prompt=str(tmp_path / "score.txt"))
    scorer.score([Candidate("Name a river.", "The Rhine.", "Any stream.")])
    assert "Any stream." in model.asked[-1].messages[-1][1]
    with pytest.raises(UserError, match="the responses to prompt 'Name a river.' have none"):
        scorer.score([Candidate("Name a river.", "The Rhine.")])


def test_messages_are_shown_below_their_roles():
    model = Rule(lambda prompt: Answer("A"))
    chat = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "Go"},
    ]
    LLMJudge(Asker(model), orders="one").compare([Pair(chat, "a", "b")])
    assert "user: Hi\n\nassistant: Yes?\n\nuser: Go" in model.asked[0].messages[-1][1]


def test_asked_again_is_another_question():
    model = Rule(lambda prompt: Answer("A"))
    judge = LLMJudge(Asker(model))
    judge.compare([PAIR])
    judge.compare([PAIR])
    judge.again().compare([PAIR])
    assert len(model.asked) == 4


def test_ratings():
    model = Rule(lambda prompt: Answer("[[8]]" if "Rhine" in prompt else "[[3]]" if "long" in prompt else "none"))
    scorer = LLMScorer(Asker(model), prompt="score_explained", max_tokens=99)
    found = scorer.score([Candidate("Name a river.", response) for response in ("The Rhine.", "long", "?")])
    assert found[:2] == [8.0, 3.0]
    assert math.isnan(found[2])
    [verdict] = ByScore(scorer).compare([PAIR])
    assert verdict.preference == 1.0
    assert scorer.again().draw == 1


def test_mistakes_are_named():
    with pytest.raises(UserError, match="orders: both or one"):
        LLMJudge(Asker(Rule(longer)), orders="all")
    with pytest.raises(UserError, match="slot {first} is missing"):
        LLMJudge(Asker(Rule(longer)), prompt="score")
    with pytest.raises(UserError, match="below highest"):
        LLMScorer(Asker(Rule(longer)), lowest=9)
