import math
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu import sentence_bleu

from lit_tr.errors import UserError
from lit_tr.rewards import Candidate, Overlap
from lit_tr.rewards.overlap import rouge_l

PAIRS = [
    ("The river is icy and cold.", "The river is cold and very icy."),
    ("Icy.", "The river is icy."),
    ("", "The river is icy."),
    ("It looks calm, doesn't it?", "It looks calm, doesn't it?"),
]


def candidates(pairs):
    return [Candidate("Describe a cold river.", response, answer) for response, answer in pairs]


def test_bleu_is_sacrebleus():
    expected = [sentence_bleu(response, [answer]).score / 100 for response, answer in PAIRS]
    assert Overlap().score(candidates(PAIRS)) == pytest.approx(expected)
    assert expected[3] == pytest.approx(1.0)


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence():
    # police kill(ed) the gunman of Lin 2004, Sec. 3.1: 3 of 4 words in order, then 2 of 4
    reference = "police killed the gunman"
    pairs = [("police kill the gunman", reference), ("the gunman kill police", reference), ("The gunman!", reference)]
    assert Overlap("rouge_l").score(candidates(pairs)) == pytest.approx([3 / 4, 2 / 4, 2 * 2 / (2 + 4)])
    assert rouge_l("", "") == rouge_l("a", "b") == 0.0


def longest(a, b):
    if not a or not b:
        return 0
    return longest(a[1:], b[1:]) + 1 if a[0] == b[0] else max(longest(a[1:], b), longest(a, b[1:]))


@given(st.text("abc", max_size=6), st.text("abc", max_size=6))
def test_the_subsequence_is_that_of_the_recursion(a, b):
    found = rouge_l(" ".join(a), " ".join(b))
    assert found == (2 * longest(a, b) / (len(a) + len(b)) if a or b else 0.0)


def test_a_row_without_an_answer_has_no_score():
    found = Overlap().score([*candidates(PAIRS[:1]), Candidate("What?", "Icy.")])
    assert [math.isnan(one) for one in found] == [False, True]
    with pytest.raises(UserError, match="bleu: it compares with reference answers, and no row has one"):
        Overlap().score([Candidate("What?", "Icy.")])


def test_mistakes_are_named(monkeypatch):
    with pytest.raises(UserError, match="measure is bleu or rouge_l, not 'meteor'"):
        Overlap("meteor")
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match=r"BLEU needs sacrebleu: pip install 'lit-tr\[evaluation\]'"):
        Overlap()
    assert Overlap("rouge_l").score(candidates(PAIRS[3:])) == [1.0]
