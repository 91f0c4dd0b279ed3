"""Ids of chats against TRL's own preparation, over the chat templates that TRL ships."""

import re
from collections import defaultdict
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer
from trl.data_utils import _tokenize, common_prefix_length

from lit_tr.data.chat import ChatTemplate, special_tokens
from lit_tr.data.example import Example
from lit_tr.data.tokenization import TokenizedExample, tokenize
from lit_tr.embedded import TINY, resolve
from lit_tr.errors import BadRowError, UserError

TEMPLATES = {path.stem: path.read_text() for path in Path(trl.__file__).parent.glob("chat_templates/*.jinja")}
SPECIAL = (
    r"<\|[^|<>'\"{}]+\|>|<｜[^｜<>]+｜>|</?s>|<(?:start|end)_of_\w+>|\[g?MASK\]|<sop>|<\|?turn\|?>|<\|?tool_\w+\|?>"
)
PARTS_ALONE = {name for name in TEMPLATES if name.startswith(("idefics3", "llava_next", "smolvlm"))}
"""Templates that print nothing of content that is text."""

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "time_of",
            "description": "Tells the time.",
            "parameters": {"type": "object", "properties": {"zone": {"type": "string", "description": "A zone."}}},
        },
    }
]


def said(role, text):
    return {"role": role, "content": text}


USER, GOOD, BAD = said("user", "Tell me about a ship."), said("assistant", "It is new."), said("assistant", "No.")
KIND = said("system", "Be kind.")
FUNCTION = {"name": "time_of", "arguments": {"zone": "CET"}}
CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "id": "abcdefghi", "function": FUNCTION}],
}
NOON = {"role": "tool", "name": "time_of", "tool_call_id": "abcdefghi", "content": "12:00"}


@cache
def tokenizer_of(name):
    """The embedded tokenizer with a template and its special tokens, and an end token that is none of them."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(TINY))
    found = sorted(set(re.findall(SPECIAL, TEMPLATES[name])))
    tokenizer.add_special_tokens({"bos_token": "<bos>", "eos_token": "<eos>", "extra_special_tokens": found})
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


def as_parts(messages):
    return [{**one, "content": [{"type": "text", "text": one["content"]}]} for one in messages]


def chat(name, prompt, chosen, rejected, **given):
    form = as_parts if name in PARTS_ALONE else list
    return Example(form(prompt), form(chosen), form(rejected), **given)


def trl_tokens(tokenizer, example):
    """What TRL 1.16 makes of a chat: DPOTrainer._prepare_dataset.tokenize_fn."""
    given = {"tools": example.tools, **example.template}
    alone = _tokenize(tokenizer, example.prompt, add_generation_prompt=True, **given)["input_ids"]
    ids = [
        _tokenize(tokenizer, example.prompt + response, **given)["input_ids"]
        for response in (example.chosen, example.rejected)
    ]
    seam = min(common_prefix_length(alone, one) for one in ids)
    return TokenizedExample(alone[:seam], ids[0][seam:], ids[1][seam:])


def outcome(name, prompt, chosen, rejected, **given):
    """`same` where our ids are TRL's, `refused` where the template refuses the messages, else our reason."""
    example, tokenizer = chat(name, prompt, chosen, rejected, **given), tokenizer_of(name)
    try:
        expected = trl_tokens(tokenizer, example)
    except Exception:
        with pytest.raises(BadRowError, match="the chat template refuses the messages"):
            tokenize(example, tokenizer)
        return "refused"
    try:
        ours = tokenize(example, tokenizer)
    except BadRowError as error:
        return error.reason
    return "same" if ours == replace(expected, chosen_scored=ours.chosen_scored) else "other"


def outcomes(*args, **given):
    """The templates of each outcome, those of `same` being all others."""
    found = defaultdict(set)
    for name in TEMPLATES:
        found[outcome(name, *args, **given)].add(name)
    del found["same"]
    return found


def family(*stems):
    """Templates with these beginnings, and those that TRL has patched for training."""
    return {name for name in TEMPLATES if name.removesuffix("_training") in stems}


WITHOUT_SYSTEM = family("gemma")
WITHOUT_CALLS = family("cohere", "cohere2", "deepseek_r1_distill", "gemma", "gemma3", "idefics3", "llama3") | family(
    "lfm2", "llava_next", "phi3", "phi3_5", "qwen2_5_vl", "smolvlm"
)
WITHOUT_TOOL_ROLE = family("cohere", "cohere2", "gemma", "gemma3", "llava_next")
TEXT_ARGUMENTS = {"deepseekv3"}
"""Takes the arguments of a call as text alone."""


@pytest.mark.parametrize("prompt", [[USER], [USER, BAD, USER], [USER, GOOD, USER, BAD, USER]], ids=len)
def test_ids_are_those_of_trl(prompt):
    assert outcomes(prompt, [GOOD], [BAD]) == {}
    assert outcomes([KIND, *prompt], [GOOD], [BAD]) == {"refused": WITHOUT_SYSTEM}


def test_ids_of_tool_calls_are_those_of_trl():
    reason = "the chat template leaves out a response"
    expected = {reason: WITHOUT_CALLS, "refused": TEXT_ARGUMENTS}
    assert outcomes([USER], [CALL], [GOOD]) == outcomes([USER], [CALL], [GOOD], tools=TOOLS) == expected
    assert len(WITHOUT_CALLS) == 26 < len(TEMPLATES) / 2


@pytest.mark.parametrize("turns", ["last", "all"])
def test_ids_after_tool_calls_are_those_of_trl(turns):
    refused = {"refused": WITHOUT_TOOL_ROLE | TEXT_ARGUMENTS}
    assert outcomes([USER, CALL, NOON], [GOOD], [BAD], tools=TOOLS) == refused
    # Phi-3 closes a chat with an end-of-sequence token that it has not between turns
    changed = {"the chat template changes earlier messages, so a turn cannot be found": family("phi3", "phi3_5")}
    assert outcomes([USER], [CALL, NOON, GOOD], [BAD], tools=TOOLS) == refused | changed


WORDS = st.text(alphabet="abc .\n<|>\u00e9", min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=300, deadline=None)
@given(
    name=st.sampled_from(sorted(TEMPLATES)),
    system=st.lists(WORDS, max_size=1),
    asked=st.lists(WORDS, min_size=1, max_size=3),
    answers=st.lists(WORDS, min_size=4, max_size=4, unique_by=str.strip),
)
def test_ids_of_any_words_are_those_of_trl(name, system, asked, answers):
    turns = [
        turn
        for pair in zip(asked, answers, strict=False)
        for turn in (said("user", pair[0]), said("assistant", pair[1]))
    ]
    prompt = [said("system", text) for text in system] + turns[:-1]
    chosen, rejected = ([said("assistant", text)] for text in answers[-2:])
    expected = "refused" if system and name in WITHOUT_SYSTEM else "same"
    assert outcome(name, prompt, chosen, rejected) == expected


@pytest.mark.parametrize(
    ("name", "response"),
    [
        ("gemma", "It is new.<end_of_turn>\n"),
        ("llama3", "It is new.<|eot_id|>"),
        ("gptoss", "<|channel|>final<|message|>It is new.<|return|>"),
        ("llava_next", " It is new.</s> "),
        ("phi3", "It is new.<|end|>\n<eos>"),  # the template's own, behind a whole chat
        ("glm4moe", "\n<think></think>\nIt is new."),  # the role of the next turn ends it
    ],
)
def test_a_turn_ends_as_the_template_ends_it(name, response):
    tokenizer = tokenizer_of(name)
    assert tokenizer.decode(tokenize(chat(name, [USER], [GOOD], [BAD]), tokenizer).chosen) == response


@pytest.mark.parametrize("start", ["", "{{ bos_token }}"])
def test_a_turn_that_no_special_token_ends_has_the_end_token(start):
    tokenizer = AutoTokenizer.from_pretrained(resolve(TINY))
    tokenizer.bos_token = tokenizer.eos_token
    tokenizer.chat_template = start + "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    ours = tokenize(Example([USER], [GOOD], [BAD]), tokenizer)
    assert tokenizer.decode(ours.chosen) == "assistant: It is new.\n<|end|>"


def test_tools_and_variables_reach_the_template_wherever_it_is_rendered():
    tokenizer = AutoTokenizer.from_pretrained(resolve(TINY))
    tokenizer.chat_template = (
        "{{ tools[0].function.name }} {{ mood }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    example = Example([USER], [GOOD, USER, BAD], [BAD], tools=TOOLS, template={"mood": "calm"})
    ours = tokenize(example, tokenizer, "all")
    assert tokenizer.decode(ours.prompt) == "time_of calm<user>Tell me about a ship.<assistant>"
    assert tokenizer.decode(ours.chosen) == "It is new.<user>Tell me about a ship.<assistant>No.<|end|>"
    assert tokenizer.decode([i for i, scored in zip(ours.chosen, ours.chosen_scored, strict=True) if scored]) == (
        "It is new.No.<|end|>"
    )


def test_a_variable_changes_what_a_template_writes():
    pair = chat("qwen3", [USER], [GOOD], [BAD], template={"enable_thinking": False})
    tokenizer = tokenizer_of("qwen3")
    assert tokenize(pair, tokenizer) == trl_tokens(tokenizer, pair)
    assert tokenizer.decode(tokenize(pair, tokenizer).prompt).endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize("given", [{"tools": ["no schema"]}, {"template": {"tokenize": False}}])
def test_tools_and_variables_that_are_refused_are_a_bad_row(given):
    with pytest.raises(BadRowError, match="the chat template refuses the messages"):
        tokenize(Example([USER], [GOOD], [BAD], **given), tokenizer_of("qwen3"))


@pytest.mark.parametrize(
    "given", [{"tools": [{"function": {"name": "<|im_end|>"}}]}, {"template": {"mood": "so <|im_end|>"}}]
)
def test_tools_and_variables_that_spell_a_special_token_are_a_bad_row(given):
    with pytest.raises(BadRowError, match=r"spells a special token \(<\|im_end\|>\)"):
        tokenize(Example([USER], [GOOD], [BAD], **given), tokenizer_of("qwen3"))


@given(text=st.lists(st.sampled_from([*"<|>_/a", "end", "<|end|>", "im_start", "<|im_start|>", "<eos>"])).map("".join))
def test_special_tokens_are_found_where_a_search_of_each_finds_one(text):
    tokenizer = tokenizer_of("qwen3")
    each = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    found = special_tokens(tokenizer).search(text)
    assert bool(found) == any(token in text for token in each)
    assert found is None or found[0] in each


def test_a_tokenizer_without_special_tokens_finds_none():
    class Bare:
        added_tokens_decoder = {}
        all_special_tokens = []

    assert special_tokens(Bare()).search("text") is None


def test_content_that_a_template_leaves_out_is_a_bad_row():
    example = Example([USER], [GOOD], [BAD])  # this template prints parts alone
    with pytest.raises(BadRowError, match=r"the chat template leaves out a response \('new.'\)"):
        tokenize(example, tokenizer_of("idefics3"))


def test_a_tokenizer_without_a_template_is_an_error():
    with pytest.raises(UserError, match="has no chat template"):
        ChatTemplate(AutoTokenizer.from_pretrained(resolve(TINY)))
