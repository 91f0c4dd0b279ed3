import pickle
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from lit_tr.data.example import Example
from lit_tr.data.formats.conversion import Conversion
from lit_tr.data.formats.pairs import explicit_prompt, implicit_prompt
from lit_tr.data.formats.rated import Ranking
from lit_tr.data.process import RowProcessor
from lit_tr.data.rows.source import Record
from lit_tr.data.tokenization import tokenize
from lit_tr.embedded import TINY, resolve
from lit_tr.errors import BadRowError, UserError

ROW = {"prompt": "Tell me about a cold river.", "chosen": " It is icy.", "rejected": " It is hot."}
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"


def said(role, text):
    return {"role": role, "content": text}


USER, GOOD, BAD = said("user", "a"), said("assistant", "b"), said("assistant", "c")


@pytest.fixture
def chat_tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(resolve(TINY))
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def record(row, format=None, **conversion):
    return Record("rows.jsonl, row 1", row, Conversion(format, **conversion))


def processed(example, tokenizer, **options):
    """The one example that becomes of an example."""
    (found,) = RowProcessor(tokenizer, **options)(record({}, lambda row: example))
    return found


def test_each_row_tells_its_format(tokenizer):
    process = RowProcessor(tokenizer)
    dialogues = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    assert [len(process(record(row))) for row in (ROW, dialogues)] == [1, 1]
    assert process(record(ROW)) == process(record(ROW, explicit_prompt))


def test_a_row_that_makes_several_pairs(tokenizer):
    row = {"prompt": "Describe a cold river.", "responses": [" It is icy.", " It is warm.", " No."], "ranks": [1, 2, 3]}
    examples = RowProcessor(tokenizer)(record(row, Ranking(pairs="all")))
    texts = [tuple(tokenizer.decode(ids[:-1]) for ids in example.responses) for example in examples]
    assert texts == [(" It is icy.", " It is warm."), (" It is icy.", " No."), (" It is warm.", " No.")]
    assert [example.margin for example in examples] == [1, 2, 1]


def test_columns_that_are_not_read_are_told(tokenizer):
    found = RowProcessor(tokenizer).process(record({**ROW, "id": 7, "source": "wild", "note": None}))
    assert found.unread == {"id", "source"}
    assert found.examples == RowProcessor(tokenizer)(record(ROW))


def test_no_row_has_no_examples_and_a_bad_row_stays_one(tokenizer):
    assert RowProcessor(tokenizer)(record(None)) == []
    with pytest.raises(BadRowError, match="cut off"):
        RowProcessor(tokenizer)(record(BadRowError("cut off")))


def test_it_goes_to_other_processes(tokenizer):
    process = RowProcessor(tokenizer, max_length=40)
    process(record(ROW))
    again = pickle.loads(pickle.dumps(process))
    assert again.max_length == 40
    assert again(record(ROW)) == process(record(ROW))


@pytest.mark.parametrize(
    ("chat", "template", "makes"),
    [("auto", TEMPLATE, True), ("auto", None, False), (True, TEMPLATE, True), (False, TEMPLATE, False)],
)
def test_text_becomes_messages_where_the_source_says_so(tokenizer, chat_tokenizer, chat, template, makes):
    process = RowProcessor(chat_tokenizer if template else tokenizer)
    assert process.makes_chat(Conversion(chat=chat)) is makes
    (example,) = process(record({**ROW, "chosen": "It is icy.", "rejected": "It is hot."}, chat=chat))
    text = process.tokenizer.decode(example.prompt + example.chosen)
    assert text == (
        "<user>Tell me about a cold river.<assistant>It is icy.<|end|>"
        if makes
        else "Tell me about a cold river.It is icy.<|end|>"
    )


def test_messages_stay_messages(chat_tokenizer):
    row = {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}
    process = RowProcessor(chat_tokenizer)
    assert process(record(row, chat=False)) == process(record(row, chat=True))


def test_chat_without_a_template_is_an_error(tokenizer):
    with pytest.raises(UserError, match="chat: true makes messages of text, and the tokenizer of .* give chat: false"):
        RowProcessor(tokenizer)(record(ROW, chat=True))


def test_text_prompts_are_truncated_on_the_left_by_tokens(tokenizer):
    row = {**ROW, "prompt": "cold " * 70 + "river."}
    (whole,) = RowProcessor(tokenizer)(record(row))
    (example,) = RowProcessor(tokenizer, max_length=12)(record(row))
    assert example.prompt == whole.prompt[-(12 - whole.longest) :]
    assert example.responses == whole.responses
    assert example.truncated == len(whole.prompt) - len(example.prompt)
    room = 12 - whole.longest
    with pytest.raises(
        BadRowError, match=rf"the prompt is too long \({len(whole.prompt)} tokens, room for {room} of 12"
    ):
        RowProcessor(tokenizer, max_length=12, truncate_prompts=False)(record(row))


def test_a_first_bos_token_stays():
    tokenizer = AutoTokenizer.from_pretrained(resolve(TINY))
    tokenizer.bos_token = "a"
    (example,) = RowProcessor(tokenizer, max_length=12)(record({**ROW, "prompt": "a" + " cold" * 70}))
    assert tokenizer.decode(example.prompt) == "a" + " cold" * (len(example.prompt) - 1)


def test_what_fits_is_left_alone(tokenizer):
    (whole,) = RowProcessor(tokenizer)(record(ROW))
    size = len(whole.prompt) + whole.longest
    for options in ({}, {"truncate_responses": True}, {"truncate_prompts": False}):
        (example,) = RowProcessor(tokenizer, max_length=size, **options)(record(ROW))
        assert example == whole
        assert (example.truncated, example.responses_truncated) == (0, (0, 0))


def test_a_response_that_is_too_long_is_a_bad_row(tokenizer):
    (whole,) = RowProcessor(tokenizer)(record(ROW))
    most = whole.longest + 1
    with pytest.raises(BadRowError, match=rf"no room for a prompt \({whole.longest} tokens, max_length {most}\)"):
        RowProcessor(tokenizer, max_length=most)(record(ROW))


ONE = "a"  # one token, and " a" another


@pytest.mark.parametrize(
    ("prompt", "chosen", "options", "kept"),
    [
        (10, 15, {}, (10, 10)),  # the response has what the prompt leaves
        (15, 8, {}, (12, 8)),  # the prompt gives way to a response that has its half
        (15, 15, {}, (10, 10)),  # half of it each
        (4, 40, {}, (4, 16)),
        (15, 15, {"truncate_prompts": False}, (15, 5)),
        (8, 15, {"truncate_prompts": False}, (8, 12)),
    ],
)
def test_responses_are_truncated_on_the_right(tokenizer, prompt, chosen, options, kept):
    example = Example(ONE + " a" * (prompt - 1), " a" * (chosen - 1), " b")
    whole = tokenize(example, tokenizer)
    assert (len(whole.prompt), len(whole.chosen), len(whole.rejected)) == (prompt, chosen, 2)
    ours = processed(example, tokenizer, max_length=20, truncate_responses=True, **options)
    assert ours.prompt == whole.prompt[prompt - kept[0] :]
    assert ours.chosen == whole.chosen[: kept[1]]
    assert (ours.chosen[-1] == tokenizer.eos_token_id) is (kept[1] == chosen)
    assert ours.rejected == whole.rejected
    assert (ours.truncated, ours.responses_truncated) == (prompt - kept[0], (chosen - kept[1], 0))


def test_a_prompt_that_leaves_nothing_of_a_response_is_a_bad_row(tokenizer):
    options = {"max_length": 20, "truncate_prompts": False, "truncate_responses": True}
    with pytest.raises(BadRowError, match=r"the prompt is too long \(20 tokens, max_length 20\)"):
        processed(Example(ONE + " a" * 19, " b", " c"), tokenizer, **options)


def test_responses_that_differ_behind_the_cut_alone_are_a_bad_row(tokenizer):
    with pytest.raises(BadRowError, match=r"chosen and rejected are equal \(in their first 19 tokens\)"):
        processed(Example(ONE, " a" * 40 + " b", " a" * 40), tokenizer, max_length=20, truncate_responses=True)


def test_scored_tokens_are_truncated_with_a_response(chat_tokenizer):
    example = Example([USER], [GOOD, USER, said("assistant", "b " * 40)], [BAD])
    whole = tokenize(example, chat_tokenizer, "last")
    ours = processed(example, chat_tokenizer, max_length=40, truncate_responses=True)
    assert len(ours.prompt) + len(ours.chosen) == 40
    assert ours.chosen_scored == whole.chosen_scored[: len(ours.chosen)]
    assert any(ours.chosen_scored)
    late = Example([USER], [said("assistant", "b " * 40), USER, GOOD], [BAD])
    with pytest.raises(BadRowError, match=r"a response is too long \(the turn that is scored is not in its first \d+"):
        processed(late, chat_tokenizer, max_length=40, truncate_responses=True)


KIND = said("system", "Be kind.")
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "f"}}]}
NOON = {"role": "tool", "content": "12:00"}


@pytest.mark.parametrize("system", [[], [KIND]])
@pytest.mark.parametrize("options", [{}, {"truncate_responses": True}])
def test_chats_lose_their_oldest_messages(chat_tokenizer, system, options):
    turns = [said(role, f"{i} cold rivers") for i in range(8) for role in ("user", "assistant")]
    prompt = [*turns, USER, CALL, NOON]
    sizes = [
        tokenize(Example([*system, *prompt[i:]], [GOOD], [BAD]), chat_tokenizer) for i in range(0, len(turns) + 1, 2)
    ]
    totals = [len(one.prompt) + one.longest for one in sizes]
    shortest = totals[-1]
    for most in [*totals, *(total - 1 for total in totals[:-1])]:
        expected = next(one for one, total in zip(sizes, totals, strict=True) if total <= most)
        ours = processed(Example([*system, *prompt], [GOOD], [BAD]), chat_tokenizer, max_length=most, **options)
        assert ours == expected
        assert ours.truncated == len(sizes[0].prompt) - len(expected.prompt)
    with pytest.raises(BadRowError, match=rf"the prompt is too long \({len(sizes[0].prompt)} tokens, room for .* has"):
        processed(Example([*system, *prompt], [GOOD], [BAD]), chat_tokenizer, max_length=shortest - 1)


ROLES = st.lists(st.sampled_from(["user", "assistant", "tool"]), max_size=8)


@settings(deadline=None)
@given(roles=ROLES, words=st.integers(1, 9), most=st.integers(8, 60))
def test_what_is_left_of_a_chat_is_the_most_that_fits(roles, words, most):
    tokenizer = AutoTokenizer.from_pretrained(resolve(TINY))
    tokenizer.chat_template = TEMPLATE
    prompt = [KIND, *(said(role, f"{i} " + "cold " * words) for i, role in enumerate(roles)), USER]
    users = [i for i, message in enumerate(prompt) if message["role"] == "user" and i > 1]
    choices = [tokenize(Example([KIND, *prompt[i:]], [GOOD], [BAD]), tokenizer) for i in [1, *users]]
    fitting = [one for one in choices if len(one.prompt) + one.longest <= most]
    if fitting:
        assert processed(Example(prompt, [GOOD], [BAD]), tokenizer, max_length=most) == fitting[0]
    else:
        with pytest.raises(BadRowError, match="the prompt is too long|no room for a prompt"):
            processed(Example(prompt, [GOOD], [BAD]), tokenizer, max_length=most)


def test_the_last_turn_of_a_chat_stays_whole_and_a_response_has_the_rest(chat_tokenizer):
    example = Example([USER, GOOD, said("user", "a " * 20)], [said("assistant", "b " * 20)], [said("assistant", "c")])
    last = tokenize(Example(example.prompt[2:], example.chosen, example.rejected), chat_tokenizer)
    most = len(last.prompt) + 9
    ours = processed(example, chat_tokenizer, max_length=most, truncate_responses=True)
    assert (ours.prompt, ours.chosen, ours.rejected) == (last.prompt, last.chosen[:9], last.rejected[:9])
    with pytest.raises(BadRowError, match="the prompt is too long"):
        processed(example, chat_tokenizer, max_length=len(last.prompt), truncate_responses=True)


def nested(depth):
    whole = {}
    for _ in range(depth):
        whole = {"a": whole}
    return whole


TURNS = [USER, GOOD] * 5000  # 10,000 messages


@pytest.mark.parametrize("truncates", [False, True])
@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({**ROW, "chosen": "ab " * 3_500_000}, "a response leaves no room for a prompt"),
        ({**ROW, "prompt": "ab " * 3_500_000}, "the prompt is too long"),
        ({"prompt": [USER], "chosen": TURNS, "rejected": [BAD]}, "a response leaves no room for a prompt"),
        ({"chosen": TURNS, "rejected": [USER, BAD]}, "a response leaves no room for a prompt"),
        ({"prompt": [{**USER, "x": nested(50_000)}], "chosen": [GOOD], "rejected": [BAD]}, "nested too deeply"),
    ],
)
def test_huge_rows_are_refused_at_once(chat_tokenizer, row, reason, truncates):
    start = time.perf_counter()
    with pytest.raises(BadRowError, match=reason):
        RowProcessor(chat_tokenizer, truncate_responses=truncates)(record(row))
    assert time.perf_counter() - start < 2


def test_ten_thousand_shared_turns_are_a_prompt(chat_tokenizer):
    row = {"chosen": [*TURNS, USER, GOOD, USER, GOOD], "rejected": [*TURNS, USER, BAD, USER, GOOD]}
    start = time.perf_counter()
    (example,) = RowProcessor(chat_tokenizer, max_length=64, turns="all")(record(row))
    assert time.perf_counter() - start < 20
    turn = len(chat_tokenizer("<user>a<assistant>b")["input_ids"])
    assert 64 - turn < len(example.prompt) + example.longest <= 64
    assert chat_tokenizer.decode(example.prompt).startswith("<user>a<assistant>b<user>a")
    assert example.truncated > 50_000
    assert implicit_prompt(row) == Example([*TURNS, USER], [GOOD, USER, GOOD], [BAD, USER, GOOD])
