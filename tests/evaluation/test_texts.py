import sys
from statistics import fmean

import pytest
from sacrebleu import sentence_bleu

from lit_tr.errors import UserError
from lit_tr.evaluation.texts import SELF_BLEU_TEXTS, distinct, repetition, self_bleu, words


def test_repetition_counts_trigrams_said_before():
    assert repetition([1, 2, 3, 1, 2, 3, 1, 2]) == 3 / 6  # 123 231 312 123 231 312
    assert repetition(["the", "river", "is", "icy"]) == 0
    assert repetition([7, 7, 7, 7], n=1) == 3 / 4
    assert repetition([1, 2]) == repetition([]) == 0  # no trigram


def test_distinct_counts_over_all_responses():
    responses = [[1, 2, 1], [1, 2], []]
    assert distinct(responses, 1) == 2 / 5
    assert distinct(responses, 2) == 2 / 3  # 12 21 12; none runs over two responses
    assert distinct([], 1) == distinct([[1]], 2) == 0


def test_words_are_the_same_for_any_tokenizer():
    assert words("Über 2 Flüsse, kalt\n-- kalt.") == ["über", "2", "flüsse", ",", "kalt", "-", "-", "kalt", "."]


def test_self_bleu_by_sacrebleu():
    texts = ["the river is icy and cold", "the river is cold and deep", "a loud castle on a big hill"]
    expected = [sentence_bleu(one, [other for other in texts if other != one]).score / 100 for one in texts]
    assert self_bleu(texts) == pytest.approx(fmean(expected))
    assert self_bleu(["the river is icy"] * 3) == pytest.approx(1)
    assert self_bleu(["the river is icy", "a b c d e"]) == 0


def test_self_bleu_of_many_takes_some_evenly():
    many = [f"{i} {i + 1} {i + 2} {i + 3} {i // 100}" for i in range(4 * SELF_BLEU_TEXTS)]
    assert self_bleu(many) == pytest.approx(self_bleu(many[::4]))


def test_what_is_missing_is_named(monkeypatch):
    with pytest.raises(UserError, match="there is 1"):
        self_bleu(["alone"])
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    with pytest.raises(UserError, match=r"pip install 'lit-tr\[evaluation\]'"):
        self_bleu(["one", "two"])
