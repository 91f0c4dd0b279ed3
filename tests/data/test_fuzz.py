"""Rows of any content are read, or refused with an error that a user can fix."""

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lit_tr.data.reader import Reader
from transformers import AutoTokenizer

from lit_tr.data import formats
from lit_tr.data.collator import Collator
from lit_tr.embedded import TINY, resolve
from lit_tr.errors import UserError
from tests.data.format_rows import ROWS

TOKENIZER = AutoTokenizer.from_pretrained(resolve(TINY))
TOKENIZER.chat_template = (
    "{% for m in messages %}<{{ m['role'] }}>"
    "{% if m['tool_calls'] %}{{ m['tool_calls'][0]['function']['name'] }}{% else %}{{ m['content'] }}{% endif %}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
KEYS = sorted({key for rows in ROWS.values() for row in rows for key in row} | {"role", "content", "response", "text"})
ODD = ["", " ", "\0", "\ud800", "<|end|>", "\n\nAssistant:", "N/A", "nan", "1e999", "assistant", "gpt", "x" * 7000]
TEXTS = st.sampled_from(ODD) | st.text(st.characters(exclude_categories=[]), max_size=6)
NUMBERS = st.booleans() | st.integers() | st.floats() | st.just(10**400)
VALUES = st.recursive(
    st.none() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | TEXTS, inner, max_size=4),
    max_leaves=12,
)
GOOD = [row for rows in ROWS.values() for row in rows]
NAMED = [getattr(formats, name) for name in ROWS]
FORMATS = st.sampled_from([None, *(format() if isinstance(format, type) else format for format in NAMED)])
FUZZ = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def read(row, format=None, turns="last"):
    """Read a row; whatever is read makes a batch of finite labels."""
    try:
        examples = Reader(TOKENIZER, format, max_length=64, turns=turns)(row)
    except UserError as error:
        return type(error)
    for example in examples:
        assert example.prompt
        assert all(example.responses)
        assert len(example.prompt) + max(map(len, example.responses)) <= 64
    batch = Collator(mismatched=True, max_length=64)(examples)
    for labels in batch.split_labels()[:2]:
        assert labels["margin"].isfinite().all()
        assert ((labels["confidence"] >= 0) & (labels["confidence"] <= 1)).all()
    assert (batch.lengths > 0).all()
    return None


@st.composite
def mutated(draw):
    """A good row with some values changed, taken away or put elsewhere, at any depth."""
    row = copy.deepcopy(draw(st.sampled_from(GOOD)))
    for _ in range(draw(st.integers(1, 3))):
        at, container = None, row
        while isinstance(container, dict | list) and container and (at is None or draw(st.booleans())):
            parent = container
            at = draw(st.sampled_from(sorted(parent) if isinstance(parent, dict) else range(len(parent))))
            container = parent[at]
        if at is None:
            break
        change = draw(st.sampled_from(["set", "remove", "repeat", "wrap", "swap"]))
        if change == "set":
            parent[at] = draw(VALUES)
        elif change == "remove":
            del parent[at]
        elif change == "repeat":
            parent[at] = parent[at] * 2 if isinstance(parent[at], list | str) else [parent[at]] * 2
        elif change == "wrap":
            parent[at] = draw(st.sampled_from([[parent[at]], {"text": parent[at]}]))
        else:
            other = draw(st.sampled_from(sorted(row))) if row else None
            parent[at] = copy.deepcopy(row.get(other))
    return row


@pytest.mark.parametrize("row", GOOD)
@pytest.mark.parametrize("turns", ["last", "all"])
def test_good_rows_are_read(row, turns):
    assert read(row, turns=turns) is None


@FUZZ
@given(row=VALUES | st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5), format=FORMATS)
def test_any_values(row, format):
    if isinstance(row, dict) or format is None:  # sources give dicts, and detection looks at no more
        read(row, format)


@FUZZ
@given(row=mutated(), turns=st.sampled_from(["last", "all"]))
def test_changed_rows(row, turns):
    read(row, None, turns)
    read(row, formats.Ranking(pairs="all"), turns)
    read(row, formats.UltraFeedback("overall", "best_random"), turns)
