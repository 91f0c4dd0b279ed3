from hypothesis import given
from hypothesis import strategies as st

from lit_tr.data.datamodule import load_tokenizer
from lit_tr.embedded import TINY
from lit_tr.evaluation.local import token_texts


def test_a_character_of_several_tokens_is_the_last_ones():
    bytes_of = [b"a", *(bytes([one]) for one in "é€".encode()), b"\xff", b"b"]

    def decode(tokens):
        return b"".join(bytes_of[token] for token in tokens).decode(errors="replace")

    assert token_texts(range(8), decode) == ["a", "", "é", "", "", "€", "", "\ufffdb"]
    assert token_texts(range(5), decode) == ["a", "", "é", "", "\ufffd"]  # of the last one some bytes are missing


@given(st.text())
def test_they_join_to_the_whole_text(text):
    tokenizer = load_tokenizer(TINY)
    tokens = tokenizer(text).input_ids
    assert "".join(token_texts(tokens, tokenizer.decode)) == tokenizer.decode(tokens)
