import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer
from trl.data_utils import _tokenize, common_prefix_length

from lit_tr.data.formats import Example
from lit_tr.data.tokenization import TokenizedExample, fit, tokenize
from lit_tr.embedded import TINY, resolve
from lit_tr.errors import BadRowError, UserError

TOKENIZER = AutoTokenizer.from_pretrained(resolve(TINY))
EOS = TOKENIZER.eos_token_id
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEXT = st.text(alphabet="abc .\n\u00e9", min_size=1, max_size=12)


def trl_tokens(tokenizer, prompt, chosen, rejected):
    """What TRL 1.16 makes of a row: DPOTrainer._prepare_dataset.tokenize_fn."""
    if isinstance(prompt, str):
        whole = [prompt + text + tokenizer.eos_token for text in (chosen, rejected)]
        alone = _tokenize(tokenizer, prompt)["input_ids"]
    else:
        whole = [prompt + chosen, prompt + rejected]
        alone = _tokenize(tokenizer, prompt, add_generation_prompt=True)["input_ids"]
    ids = [_tokenize(tokenizer, one)["input_ids"] for one in whole]
    seam = min(common_prefix_length(alone, one) for one in ids)
    return TokenizedExample(alone[:seam], ids[0][seam:], ids[1][seam:])


@pytest.fixture
def chat_tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(resolve(TINY))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def test_explicit_ids(tokenizer):
    example = tokenize(Example("Describe a cold river.", " It seems icy.", " It seems hot."), tokenizer)
    words = {name: tokenizer.convert_ids_to_tokens(getattr(example, name)) for name in ("prompt", "chosen", "rejected")}
    assert words == {
        "prompt": ["Describe", "Ġa", "Ġcold", "Ġriver", "."],
        "chosen": ["ĠIt", "Ġseems", "Ġicy", ".", "<|end|>"],
        "rejected": ["ĠIt", "Ġseems", "Ġhot", ".", "<|end|>"],
    }


@given(prompt=TEXT, chosen=TEXT, rejected=TEXT)
def test_text_is_parted_as_trl_parts_it(prompt, chosen, rejected):
    expected = trl_tokens(TOKENIZER, prompt, chosen, rejected)
    if not expected.prompt or chosen == rejected:
        return
    assert tokenize(Example(prompt, chosen, rejected), TOKENIZER) == expected


@given(prompt=TEXT, chosen=TEXT, rejected=TEXT)
def test_no_text_is_lost_at_the_seam(prompt, chosen, rejected):
    try:
        example = tokenize(Example(prompt, chosen, rejected), TOKENIZER)
    except BadRowError:
        return
    for text, ids in ((chosen, example.chosen), (rejected, example.rejected)):
        assert TOKENIZER.decode(example.prompt + ids[:-1]) == prompt + text
        assert ids[-1] == EOS


def test_chat_is_parted_as_trl_parts_it(chat_tokenizer):
    prompt = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Tell me about a ship"}]
    chosen, rejected = ([{"role": "assistant", "content": text}] for text in ("It is new.", "No."))
    ours = tokenize(Example(prompt, chosen, rejected), chat_tokenizer)
    assert ours == trl_tokens(chat_tokenizer, prompt, chosen, rejected)
    assert ours.chosen.count(EOS) == 1  # the template closes the response


def test_unpaired_example_has_one_response(tokenizer):
    example = tokenize(Example("Describe a cold river.", None, " No."), tokenizer)
    assert example.chosen is None
    assert example.responses == [example.rejected]


def test_special_tokens_written_in_text_stay_text(tokenizer):
    example = tokenize(Example("What is <|end|> here", " a<|end|>b", " c"), tokenizer)
    assert EOS not in example.prompt
    assert example.chosen.count(EOS) == 1
    assert example.chosen[-1] == EOS


def test_chat_without_template_is_an_error(tokenizer):
    with pytest.raises(UserError, match="has no chat template"):
        tokenize(Example([{"role": "user", "content": "a"}], "b", "c"), tokenizer)


def test_messages_that_the_template_refuses_are_a_bad_row(chat_tokenizer):
    chat_tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(BadRowError, match=r"the chat template refuses the messages \(roles must alternate\)"):
        tokenize(Example([{"role": "user", "content": "a"}], "b", "c"), chat_tokenizer)


def test_prompt_without_tokens_is_a_bad_row(tokenizer):
    with pytest.raises(BadRowError, match="prompt has no tokens"):
        tokenize(Example("", "b", "c"), tokenizer)


LONG = TokenizedExample(list(range(1, 11)), [20, 21, 0], [30, 0])


def test_a_long_prompt_is_cut_on_the_left_alone():
    assert fit(LONG, 7, cut_prompt=True, bos=None) == TokenizedExample([7, 8, 9, 10], [20, 21, 0], [30, 0])


def test_a_first_bos_token_stays():
    assert fit(LONG, 7, cut_prompt=True, bos=1).prompt == [1, 8, 9, 10]


def test_what_fits_is_left_alone():
    assert fit(LONG, 13, cut_prompt=True, bos=None) is LONG


def test_a_long_prompt_that_may_not_be_cut_is_a_bad_row():
    with pytest.raises(BadRowError, match=r"prompt is too long \(10 tokens, room for 4 of 7\)"):
        fit(LONG, 7, cut_prompt=False, bos=None)


def test_a_long_response_is_never_cut():
    with pytest.raises(BadRowError, match=r"leaves no room for a prompt \(3 tokens, max_length 4\)"):
        fit(LONG, 4, cut_prompt=True, bos=None)
