"""Rows of any content become examples, or are bad rows; never anything else."""

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lit_tr.data.example import Example
from lit_tr.data.formats import FORMATS, Conversion, Ranking, UltraFeedback
from lit_tr.errors import BadRowError
from tests.data.formats.published import ROWS

GOOD = [known.row for known in FORMATS] + [row for _, row, _ in ROWS.values()]
KEYS = sorted({key for row in GOOD for key in row} | {"role", "content", "from", "value", "text", "tools", "images"})
ODD = ["", " ", "\0", "\ud800", "<|end|>", "\n\nAssistant:", "N/A", "nan", "1e999", "assistant", "gpt", "[1]", "x" * 99]
TEXTS = st.sampled_from(ODD) | st.text(st.characters(exclude_categories=[]), max_size=6)
NUMBERS = st.booleans() | st.integers() | st.floats() | st.just(10**400)
VALUES = st.recursive(
    st.none() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS) | TEXTS, inner, max_size=4),
    max_leaves=12,
)
ALL = [None, *{known.name: known.format for known in FORMATS}.values(), Ranking("all"), UltraFeedback("overall", "all")]
FUZZ = settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def check(row, format=None, columns=None):
    """Convert a row; whatever becomes of it has messages or text, and labels that a batch can hold."""
    try:
        examples, unread = Conversion(format, columns).convert(row)
        examples += [example.as_messages() for example in examples]
    except BadRowError as error:
        return error
    assert unread <= set(row)
    assert examples
    for example in examples:
        assert isinstance(example, Example)
        assert abs(example.margin) < 3e38
        assert 0 <= example.confidence <= 1
        for text in (example.prompt, *filter(None, (example.chosen, example.rejected))):
            assert isinstance(text, str) or all(isinstance(one["role"], str) for one in text)
    return None


@st.composite
def damaged(draw):
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
def test_good_rows_become_examples(row):
    assert check(row) is None


@FUZZ
@given(row=VALUES | st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=6), format=st.sampled_from(ALL))
def test_any_values(row, format):
    check(row, format)


@FUZZ
@given(
    row=damaged(),
    format=st.none() | st.sampled_from(ALL),
    add=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=2),
)
def test_damaged_rows(row, format, add):
    check(row, format)
    check({**row, **add})


@FUZZ
@given(row=damaged(), columns=st.dictionaries(st.sampled_from(KEYS), st.sampled_from(KEYS) | TEXTS, max_size=3))
def test_damaged_rows_with_columns_of_other_names(row, columns):
    check(row, None, columns)
