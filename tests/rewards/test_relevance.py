import math

import pytest

from lit_tr.embedded import TINY
from lit_tr.errors import UserError
from lit_tr.rewards import Candidate, Relevance
from lit_tr.rewards.similarity import Pooled, TfIdf, similarities

SOME = [Candidate("a cold river", "It is icy.", "icy"), Candidate("a hot ship", "It is hot.", "warm")]


def test_it_is_the_cosine_to_the_answer_or_to_the_prompt():
    answers = [(one.reference_answer, one.response) for one in SOME]
    prompts = [(one.prompt, one.response) for one in SOME]
    assert Relevance().score(SOME) == pytest.approx(similarities(TfIdf(), answers, True))
    assert Relevance("prompt").score(SOME) == pytest.approx(similarities(TfIdf(), prompts, True))
    by_model = Relevance("prompt", TINY, "cpu").score(SOME)
    assert by_model == pytest.approx(similarities(Pooled(TINY, "cpu"), prompts, True), rel=1e-5)
    same = [Candidate("What?", "It is icy.", "It is icy.")]
    assert Relevance(encoder=TINY, device="cpu").score(same) == pytest.approx([1.0])


def test_a_row_without_an_answer_has_no_score():
    found = Relevance().score([*SOME, Candidate("What?", "Icy.")])
    assert [math.isnan(one) for one in found] == [False, False, True]
    with pytest.raises(UserError, match="relevance to answer: it compares with reference answers"):
        Relevance().score([Candidate("What?", "Icy.")])


def test_statistics_of_words_are_kept(tmp_path):
    first = Relevance("prompt").fit(SOME)
    first.save(tmp_path / "fitted.json")
    assert Relevance("prompt", fitted=str(tmp_path / "fitted.json")).score(SOME[:1]) == first.score(SOME)[:1]


def test_what_it_compares_with_is_checked():
    with pytest.raises(UserError, match="to answer or prompt, not 'question'"):
        Relevance("question")
