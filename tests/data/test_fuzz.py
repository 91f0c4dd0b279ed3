"""Rows of any content become batches, or are bad rows; never anything else."""

import copy

import pytest
from hypothesis import given

from lit_tr.data.collator import Collator
from lit_tr.data.formats import Conversion
from lit_tr.data.process import RowProcessor
from lit_tr.data.rows.source import Record
from lit_tr.errors import BadRowError
from tests.data.formats.test_fuzz import FUZZ, damaged

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture(scope="module", params=["text", "chat"])
def processor(request, tokenizer):
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = TEMPLATE if request.param == "chat" else None
    return RowProcessor(tokenizer, max_length=64, truncate_responses=True, turns="all")


@FUZZ
@given(row=damaged())
def test_damaged_rows_become_batches_or_are_bad_rows(processor, row):
    try:
        examples = processor(Record("here", row, Conversion()))
    except BadRowError:
        return
    except ValueError as error:
        assert "has no chat template" in str(error)  # noqa: PT017
        return
    for collator in (Collator(), Collator(packed=False, mismatched=True, max_length=64)):
        batch = collator(examples)
        assert len(batch) >= len(examples)
        assert int(batch.lengths.min()) > 0
