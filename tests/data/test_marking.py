import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from lit_tr.data.marking import MARKS, escaped, marked


def shown(tokenizer, ids, scored=None, before=()):
    return marked(list(before), ids, [True] * len(ids) if scored is None else scored, tokenizer).plain


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


def test_scored_tokens_are_marked_each(tokenizer):
    found = ids(tokenizer, " It is cold.")
    assert shown(tokenizer, found) == "⟦ It¦ is¦ cold¦.⟧"
    assert shown(tokenizer, found, [False, False, True, True]) == " It is⟦ cold¦.⟧"
    assert shown(tokenizer, found, [True, False, False, True]) == "⟦ It⟧ is cold⟦.⟧"
    assert shown(tokenizer, []) == ""


def test_special_tokens_are_told_from_their_text(tokenizer):
    end = tokenizer.eos_token
    assert shown(tokenizer, [tokenizer.eos_token_id]) == f"⟦⟪{end}⟫⟧"
    spelled = ids(tokenizer, end)
    assert len(spelled) > 1
    assert shown(tokenizer, [*spelled, tokenizer.eos_token_id], [False] * (len(spelled) + 1)) == f"{end}⟪{end}⟫"


@pytest.mark.parametrize("text", ["☃", "🙂", "é", "日"])
def test_tokens_that_make_one_character_stand_together(tokenizer, text):
    found = ids(tokenizer, text)
    assert len(found) > 1
    assert shown(tokenizer, found) == f"⟦{text}⟧"
    assert shown(tokenizer, found + ids(tokenizer, ".") + found) == f"⟦{text}¦.¦{text}⟧"


def test_what_cannot_be_shown_is_shown_by_its_number(tokenizer):
    found = ids(tokenizer, "\x1b[31m⟦a⟧")
    assert shown(tokenizer, found, [False] * len(found)) == "⟨U+001B⟩[31m⟨U+27E6⟩a⟨U+27E7⟩"
    assert escaped("\\x1b a\n\tb") == "\\x1b a\n\tb"


TEXTS = st.text(st.one_of(st.sampled_from([*MARKS, "U", "+", "2", "7", "E", "6"]), st.characters(codec="utf-8")))


@given(TEXTS)
def test_no_two_texts_are_shown_alike(text):
    found = escaped(text)
    assert re.sub("⟨U\\+([0-9A-F]+)⟩", lambda number: chr(int(number[1], 16)), found) == text
    assert not set("⟦¦⟧⟪⟫") & set(found)


def test_a_tokenizer_that_leaves_out_a_first_space():
    backend = Tokenizer(models.WordLevel({"▁River": 0, "▁is": 1, "▁cold": 2}))
    backend.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert shown(tokenizer, [1, 2], before=[0]) == "⟦ is¦ cold⟧"
