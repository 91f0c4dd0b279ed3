import pytest

from lit_tr.embedded import GoldReward
from lit_tr.errors import UserError
from lit_tr.rewards import Candidate, FunctionScorer, Gold, Overlap, Scorer, WhiteBox, as_scorer, explain
from lit_tr.rewards.base import reference_answers

CHAT = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]


def shortness(prompt, response):
    return len(prompt) - len(response)


def test_a_function_scores_the_last_message():
    scorer = as_scorer(shortness)
    assert scorer.score([Candidate("Hello", "abc"), Candidate(CHAT, "abc")]) == [2.0, -1.0]
    assert scorer.name == "shortness"
    assert FunctionScorer(GoldReward()).name == "GoldReward"


def test_a_scorer_stays_as_it_is():
    for scorer in (WhiteBox(), Gold(), Overlap()):
        assert isinstance(scorer, Scorer)
        assert as_scorer(scorer) is scorer


def test_what_is_neither_is_named():
    with pytest.raises(UserError, match="str: a reward is a function"):
        as_scorer("lit_tr.rewards.Gold")


def test_what_tells_no_features_has_its_score_alone():
    assert explain(as_scorer(shortness), [Candidate("Hello", "abc")]) == [{"score": 2.0}]


def test_a_sample_without_any_reference_answer_is_refused():
    some = [Candidate("a", "b"), Candidate("a", "b", "c")]
    assert reference_answers("mine", some) == [None, "c"]
    assert reference_answers("mine", []) == []
    with pytest.raises(UserError, match="mine: it compares with reference answers, and no row has one"):
        reference_answers("mine", some[:1])
