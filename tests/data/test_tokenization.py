from itertools import groupby
from operator import itemgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer
from trl.data_utils import _tokenize, common_prefix_length

from lit_tr.data.example import Example
from lit_tr.data.tokenization import TokenizedExample, tokenize
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


USER, KIND = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "It is warm."}
CURT = {"role": "assistant", "content": "No."}
CALL = {"role": "assistant", "tool_calls": [{"function": {"name": "time", "arguments": {}}}]}
NOON = {"role": "tool", "name": "time", "content": "12:00"}


def parts(ids, scored, tokenizer):
    """Scored and unscored stretches of a response as text."""
    runs = groupby(zip(ids, scored or [True] * len(ids), strict=True), key=itemgetter(1))
    return [(is_scored, tokenizer.decode([token for token, _ in run])) for is_scored, run in runs]


@pytest.mark.parametrize(
    ("turns", "chosen", "rejected"),
    [
        (
            "last",
            [
                (False, "It is warm.<|end|><user>Hi<assistant>"),
                (True, "No.<|end|>"),
            ],
            [(False, "No.<|end|><user>Hi<assistant>"), (True, "It is warm.<|end|>")],
        ),
        (
            "all",
            [(True, "It is warm.<|end|>"), (False, "<user>Hi<assistant>"), (True, "No.<|end|>")],
            [(True, "No.<|end|>"), (False, "<user>Hi<assistant>"), (True, "It is warm.<|end|>")],
        ),
    ],
)
def test_turns_that_are_scored(chat_tokenizer, turns, chosen, rejected):
    # the last message is the user's, with nothing of the assistant behind it
    example = Example([USER, KIND, USER], [KIND, USER, CURT, USER], [CURT, USER, KIND])
    ours = tokenize(example, chat_tokenizer, turns)
    assert chat_tokenizer.decode(ours.prompt) == "<user>Hi<assistant>It is warm.<|end|><user>Hi<assistant>"
    assert parts(ours.chosen, ours.chosen_scored, chat_tokenizer) == chosen
    assert parts(ours.rejected, ours.rejected_scored, chat_tokenizer) == rejected


@pytest.mark.parametrize("turns", ["last", "all"])
def test_a_single_message_is_scored_whole_beside_several(chat_tokenizer, turns):
    ours = tokenize(Example([USER], [KIND, USER, CURT], [CURT]), chat_tokenizer, turns)
    assert parts(ours.rejected, ours.rejected_scored, chat_tokenizer) == [(True, "No.<|end|>")]


def test_the_last_turn_is_closed_where_the_template_does_not(chat_tokenizer):
    chat_tokenizer.chat_template = TEMPLATE.replace("{{ eos_token }}", "")
    ours = tokenize(Example([USER], [KIND, USER, CURT], [CURT]), chat_tokenizer, "all")
    assert ours.chosen.count(EOS) == ours.rejected.count(EOS) == 1
    assert parts(ours.chosen, ours.chosen_scored, chat_tokenizer)[-1] == (True, "No.<|end|>")


@given(texts=st.lists(TEXT, min_size=2, max_size=4), turns=st.sampled_from(["last", "all"]))
def test_what_is_scored_are_the_messages_of_the_assistant(texts, turns):
    tokenizer = AutoTokenizer.from_pretrained(resolve(TINY))
    tokenizer.chat_template = TEMPLATE
    said = [{"role": "assistant", "content": text} for text in texts]
    response = [message for one in said for message in (one, USER)][:-1]
    ours = tokenize(Example([USER], response, [KIND, USER]), tokenizer, turns)
    scored = [text for is_scored, text in parts(ours.chosen, ours.chosen_scored, tokenizer) if is_scored]
    assert scored == [f"{text}<|end|>" for text in (texts if turns == "all" else texts[-1:])]


def test_tool_calls_and_their_keys_reach_the_template(chat_tokenizer):
    chat_tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}{% if m.name is defined %} {{ m.name }}{% endif %}>"
        "{% if m.tool_calls %}{{ m.tool_calls[0].function.name }}(){% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    ours = tokenize(Example([USER], [CALL, NOON, KIND], [CURT]), chat_tokenizer, "all")
    assert chat_tokenizer.decode(ours.chosen) == "time()<tool time>12:00<assistant>It is warm.<|end|>"
    assert [text for is_scored, text in parts(ours.chosen, ours.chosen_scored, chat_tokenizer) if is_scored] == [
        "time()",
        "It is warm.<|end|>",
    ]


@pytest.mark.parametrize(
    "template",
    [
        # only the last message is closed; only the last message is shown whole
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if loop.last %}.{% endif %}{% endfor %}",
        "{% for m in messages %}<{{ m.role }}>{{ m.content if loop.last else m.content[:1] }}{% endfor %}",
    ],
)
def test_a_template_that_changes_earlier_messages_is_a_bad_row(chat_tokenizer, template):
    chat_tokenizer.chat_template = template
    with pytest.raises(BadRowError, match="the chat template changes earlier messages"):
        tokenize(Example([USER], [KIND, USER, CURT], [CURT]), chat_tokenizer)


def test_a_template_that_opens_a_turn_otherwise_than_it_shows_it_will_do(chat_tokenizer):
    # as Qwen3 does, whose generation prompt may hold an empty thought
    chat_tokenizer.chat_template = TEMPLATE.replace("<assistant>{% endif %}", "<assistant>[]{% endif %}")
    ours = tokenize(Example([USER], [KIND, USER, CURT], [CURT]), chat_tokenizer)
    assert parts(ours.chosen, ours.chosen_scored, chat_tokenizer)[-1] == (True, "No.<|end|>")


def test_a_response_without_the_assistant_is_a_bad_row(chat_tokenizer):
    with pytest.raises(BadRowError, match="a response has no message of the assistant"):
        tokenize(Example([USER], [NOON, USER], [KIND]), chat_tokenizer)


def test_responses_that_differ_behind_their_last_turn_alone_are_equal(chat_tokenizer):
    with pytest.raises(BadRowError, match="chosen and rejected are equal"):
        tokenize(Example([USER], [KIND, USER, CURT, USER], [KIND, USER, CURT, NOON]), chat_tokenizer)


def test_a_slow_tokenizer_is_an_error_where_turns_are_looked_for(chat_tokenizer):
    class Slow(type(chat_tokenizer)):
        is_fast = False

    chat_tokenizer.__class__ = Slow
    with pytest.raises(UserError, match="take a fast tokenizer"):
        tokenize(Example([USER], [KIND, USER, CURT], [CURT]), chat_tokenizer)


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": "What is <|end|>?"},
        {"role": "user", "content": [{"type": "text", "text": "<|end|>"}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"of": "<|end|>"}}}]},
    ],
)
def test_messages_that_spell_a_special_token_are_a_bad_row(chat_tokenizer, message):
    with pytest.raises(BadRowError, match=r"a message spells a special token \(<\|end\|>\)"):
        tokenize(Example([message], "b", "c"), chat_tokenizer)


def test_parts_that_the_template_would_print_are_a_bad_row(chat_tokenizer):
    parts = [{"type": "text", "text": "Hi"}]
    example = Example([{"role": "user", "content": parts}], "b", "c")
    with pytest.raises(BadRowError, match="takes no lists of parts"):
        tokenize(example, chat_tokenizer)
    chat_tokenizer.chat_template = (
        "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}!"
    )
    as_parts = [{"role": "assistant", "content": [{"type": "text", "text": text}]} for text in (" a", " b")]
    ours = tokenize(Example(example.prompt, as_parts[:1], as_parts[1:]), chat_tokenizer)
    assert chat_tokenizer.decode(ours.prompt) == "Hi"


@pytest.mark.parametrize("prompt", ["a\ud800", [{"role": "user", "content": "\udfff"}]])
def test_lone_surrogates_are_a_bad_row(chat_tokenizer, prompt):
    with pytest.raises(BadRowError, match="the text is no valid Unicode"):
        tokenize(Example(prompt, "b", "c"), chat_tokenizer)


def test_zero_bytes_are_text_as_any_other(tokenizer):
    ours = tokenize(Example("a\0", "b\0", "c"), tokenizer)
    assert tokenizer.decode(ours.prompt + ours.chosen) == "a\0b\0<|end|>"


def test_labels_travel_with_the_tokens(tokenizer):
    ours = tokenize(Example("a", " b", " c", 2.5, 0.75, {"score": (4.0, 1.5)}), tokenizer)
    assert (ours.margin, ours.confidence, ours.labels) == (2.5, 0.75, {"score": (4.0, 1.5)})


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


def test_the_system_stands_before_a_text_with_a_blank_line(tokenizer):
    with_system = tokenize(Example("Describe a river.", " It is icy.", " No.", system="Be kind."), tokenizer)
    assert with_system == tokenize(Example("Be kind.\n\nDescribe a river.", " It is icy.", " No."), tokenizer)
    without = tokenize(Example("Describe a river.", " It is icy.", " No.", system=""), tokenizer)
    assert without == tokenize(Example("Describe a river.", " It is icy.", " No."), tokenizer)


def test_responses_of_equal_tokens_are_a_bad_row(chat_tokenizer):
    chat_tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}{% endfor %}"
    with pytest.raises(BadRowError, match=r"chosen and rejected are equal \(as tokens\)"):
        tokenize(Example([USER], [{**KIND, "content": "No. "}], [CURT]), chat_tokenizer)
