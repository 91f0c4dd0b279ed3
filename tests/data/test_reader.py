import pickle
import time

import pytest
from transformers import AutoTokenizer

from lit_tr.data.example import Example
from lit_tr.data.formats import chat_implicit, explicit_prompt
from lit_tr.data.rated import Ranking
from lit_tr.data.reader import Reader
from lit_tr.embedded import TINY, resolve
from lit_tr.errors import BadRowError, UserError

ROW = {"prompt": "Tell me about a cold river.", "chosen": " It is icy.", "rejected": " It is hot."}
USER, GOOD, BAD = ({"role": role, "content": text} for role, text in (("user", "a"), *[("assistant", t) for t in "bc"]))


@pytest.fixture
def chat_tokenizer():
    tokenizer = AutoTokenizer.from_pretrained(resolve(TINY))
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    return tokenizer


def test_each_row_tells_its_format(tokenizer):
    read = Reader(tokenizer)
    dialogues = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"}
    assert [len(read(row)) for row in (ROW, dialogues)] == [1, 1]
    assert read(ROW) == Reader(tokenizer, explicit_prompt)(ROW)


def test_a_row_that_makes_several_pairs(tokenizer):
    row = {"prompt": "Describe a cold river.", "responses": [" It is icy.", " It is warm.", " No."], "ranks": [1, 2, 3]}
    examples = Reader(tokenizer, Ranking(pairs="all"))(row)
    texts = [tuple(tokenizer.decode(ids[:-1]) for ids in example.responses) for example in examples]
    assert texts == [(" It is icy.", " It is warm."), (" It is icy.", " No."), (" It is warm.", " No.")]
    assert [example.margin for example in examples] == [1, 2, 1]


def test_a_reader_goes_to_other_processes(tokenizer):
    reader = Reader(tokenizer, Ranking(), max_length=40)
    again = pickle.loads(pickle.dumps(reader))
    assert again.format == reader.format
    assert Reader(again.tokenizer)(ROW) == Reader(tokenizer)(ROW)


def test_prompts_are_cut_to_fit(tokenizer):
    (example,) = Reader(tokenizer, max_length=12)({**ROW, "prompt": "cold " * 70})
    assert len(example.prompt) == 12 - max(map(len, example.responses))
    with pytest.raises(BadRowError, match="the prompt is too long"):
        Reader(tokenizer, max_length=12, cut_prompts=False)({**ROW, "prompt": "cold " * 70})


def test_a_format_of_ones_own_that_gives_something_else_is_named(tokenizer):
    with pytest.raises(UserError, match="data.format gave str, and not an Example"):
        Reader(tokenizer, format=lambda row: "text")(ROW)


def nested(depth):
    whole = {}
    for _ in range(depth):
        whole = {"a": whole}
    return whole


TURNS = [USER, GOOD] * 5000  # 10,000 messages


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
def test_huge_rows_are_refused_at_once(chat_tokenizer, row, reason):
    start = time.perf_counter()
    with pytest.raises(BadRowError, match=reason):
        Reader(chat_tokenizer)(row)
    assert time.perf_counter() - start < 2


def test_ten_thousand_shared_turns_are_a_prompt(chat_tokenizer):
    row = {"chosen": [*TURNS, USER, GOOD, USER, GOOD], "rejected": [*TURNS, USER, BAD, USER, GOOD]}
    start = time.perf_counter()
    (example,) = Reader(chat_tokenizer, max_length=64, turns="all")(row)
    assert time.perf_counter() - start < 20
    assert len(example.prompt) + max(map(len, example.responses)) == 64
    assert example.cut > 50_000
    assert chat_implicit(row) == Example([*TURNS, USER], [GOOD, USER, GOOD], [BAD, USER, GOOD])
