import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_tr.embedded import TINY
from lit_tr.errors import UserError
from lit_tr.rewards import Candidate, WhiteBox
from lit_tr.rewards.similarity import Pooled, TfIdf, similarities
from lit_tr.rewards.white_box import by_kind, has_answer, never, wordpunct

ASK = "Describe a cold river."
ICY = "The river is icy. The river is icy."  # 10 tokens; 8 trigrams, of which 5 differ
ANSWER = "A cold river is icy."
OPEN = Candidate(ASK, ICY)
CLOSED = Candidate(ASK, ICY, ANSWER, "CONSTRAINED")


def between(*pair, encoder=None, cosine=False):
    return similarities(encoder or TfIdf(), [pair], cosine)[0]


def test_an_open_ended_response_gets_length_times_relevance_times_repetition():
    [found] = WhiteBox().explain([OPEN])
    relevance = between(ASK, ICY)
    assert found == pytest.approx(
        {"score": 0.10 * relevance * 5 / 8, "length": 0.10, "relevance": relevance, "repetition": 5 / 8, "closed": 0}
    )


def test_a_closed_ended_one_gets_its_scaled_relevance_to_the_answer_times_repetition():
    [found] = WhiteBox(encoder=TINY, device="cpu").explain([CLOSED])
    relevance = between(ANSWER, ICY, encoder=Pooled(TINY, "cpu"))
    assert found["relevance"] == pytest.approx(relevance, rel=1e-5)
    assert found["score"] == pytest.approx(relevance / 3.5 * 5.12 * 5 / 8, rel=1e-5)
    assert found["closed"] == 1
    bounded = between(ANSWER, ICY, encoder=Pooled(TINY, "cpu"), cosine=True)
    for options, top in (({}, 1.0), ({"top": 0.5}, 0.5)):
        scorer = WhiteBox(encoder=TINY, device="cpu", cosine=True, max_tokens=200, **options)
        assert scorer.score([CLOSED]) == pytest.approx([bounded / top * 2.00 * 5 / 8], rel=1e-5)


def test_without_relevance_or_without_branches_all_rows_are_open_ended():
    """As the published code has it."""
    assert WhiteBox(relevance=0).score([CLOSED]) == pytest.approx([0.10 * 5 / 8])
    assert WhiteBox(is_closed=never).score([CLOSED]) == pytest.approx(WhiteBox().score([OPEN]))


def test_exponents_weigh_the_factors_and_0_switches_one_off():
    relevance = between(ASK, ICY)
    assert WhiteBox(0.5, 2.0, 0.0).score([OPEN]) == pytest.approx([0.1**0.5 * relevance**2])
    assert "repetition" not in WhiteBox(repetition=0).explain([OPEN])[0]
    assert WhiteBox(0, 0, 0).score([OPEN]) == [1.0]


def test_a_negative_relevance_keeps_its_sign():
    opposite = WhiteBox(relevance=2.0)
    opposite._encoder = Opposite()
    assert opposite.score([OPEN]) == pytest.approx([-0.25 * 0.1 * 5 / 8])


class Opposite:
    def __call__(self, texts):
        import numpy as np

        return np.array([[0.5], [-1.0]])


def test_a_copy_of_the_prompt_can_be_made_worthless():
    copy, half = Candidate(ICY, ICY), Candidate(ASK, "Describe a cold ship.")
    assert WhiteBox().score([copy]) == pytest.approx([0.1 * 5 / 8])  # as relevant as can be
    assert WhiteBox(copying=1).score([copy]) == [0.0]
    [found] = WhiteBox(relevance=0, copying=2).explain([half])  # trigrams: one of the prompt, two of its own
    assert found["copying"] == pytest.approx(2 / 3)
    assert found["score"] == pytest.approx(0.05 * (2 / 3) ** 2)


def test_length_can_saturate():
    scores = WhiteBox(relevance=0, repetition=0, longest=8).score([Candidate("", "a " * n) for n in (7, 8, 9, 900)])
    assert scores == pytest.approx([0.07, 0.08, 0.08, 0.08])


@pytest.mark.parametrize("stop", ["\n\n\n\n", "\n\n--", "\n\n____"])
def test_what_follows_a_stop_counts_for_neither_length_nor_repetition(stop):
    candidates = [Candidate(ASK, f"\n {ICY}{stop}{ICY}")]
    assert WhiteBox(relevance=0).score(candidates) == pytest.approx([0.10 * 5 / 8])
    assert WhiteBox(relevance=0, stops=()).explain(candidates)[0]["length"] > 0.10
    roles = WhiteBox(relevance=0, stops=("Human:",))
    assert roles.score([Candidate(ASK, f"{ICY} Human: and {ICY}")]) == pytest.approx([0.10 * 5 / 8])


def test_an_empty_response_gets_nothing():
    assert WhiteBox().score([Candidate(ASK, ""), OPEN])[0] == 0.0


def test_a_closed_ended_row_without_an_answer_has_no_score():
    found = WhiteBox().score([Candidate(ASK, ICY, kind="closed"), OPEN])
    assert [math.isnan(one) for one in found] == [True, False]


def test_a_row_is_open_or_closed_by_its_kind_or_by_a_rule():
    kinds = ("OPENENDED", "open-ended", None, "CONSTRAINED", "closed", "Closed ended")
    assert [by_kind(Candidate("", "", kind=kind)) for kind in kinds] == [False] * 3 + [True] * 3
    with pytest.raises(UserError, match="kind 'poem': a row is open"):
        WhiteBox().score([Candidate(ASK, ICY, kind="poem")])
    assert has_answer(Candidate("", "", "x"))
    assert not has_answer(Candidate("", "", kind="closed"))
    assert WhiteBox(is_closed=has_answer).explain([Candidate(ASK, ICY, ANSWER)])[0]["closed"] == 1


def test_statistics_of_words_are_kept(tmp_path):
    some = [OPEN, CLOSED, Candidate("What is a hot ship like?", "It is warm.")]
    first = WhiteBox().fit(some)
    first.save(tmp_path / "fitted.json")
    second = WhiteBox(fitted=str(tmp_path / "fitted.json"))
    assert second.score(some[:1]) == pytest.approx(first.score(some)[:1])
    assert second.score(some[:1]) != pytest.approx(WhiteBox().score(some[:1]))
    assert WhiteBox(relevance=0).fit(some).state() is None


def test_mistakes_are_named():
    with pytest.raises(UserError, match="length is an exponent, at least 0, not -1"):
        WhiteBox(length=-1)
    with pytest.raises(UserError, match="repetition is an exponent, at least 0, not nan"):
        WhiteBox(repetition=math.nan)


@given(st.text())
def test_tokens_hold_all_but_white_space(text):
    tokens = wordpunct(text)
    assert "".join(tokens) == re.sub(r"\s", "", text)
    assert not any(re.search(r"\w\W|\W\w|\s", token) for token in tokens)
