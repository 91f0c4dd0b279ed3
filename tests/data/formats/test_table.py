import pytest

from lit_tr.data import formats
from lit_tr.data.formats import FORMATS, Conversion
from lit_tr.errors import BadRowError
from tests.data.formats.published import ROWS

KNOWN = {"+".join(one.columns): one for one in FORMATS}


def test_each_format_has_rows_here():
    assert set(ROWS) == set(KNOWN)
    assert len(KNOWN) == len(FORMATS)


@pytest.mark.parametrize("columns", KNOWN)
def test_rows_of_published_data_become_these_examples(columns):
    of_example_row, row, of_row = ROWS[columns]
    for given, expected in ((KNOWN[columns].row, of_example_row), (row, of_row)):
        assert formats.known(given) is KNOWN[columns]
        assert formats.detect(given)(given) == expected
        assert Conversion()(given) == (expected if isinstance(expected, list) else [expected])


@pytest.mark.parametrize("columns", KNOWN)
def test_each_format_is_public_and_says_what_it_is_in_a_line(columns):
    known = KNOWN[columns]
    named = getattr(formats, known.name)
    assert named in (known.format, type(known.format))
    assert known.name in formats.__all__
    assert 20 < len(known.meaning) <= 120
    assert known.meaning.endswith(".")


@pytest.mark.parametrize("columns", KNOWN)
def test_a_row_of_a_known_format_without_a_value_is_a_bad_row(columns):
    known = KNOWN[columns]
    row = {column: known.row[column] for column in known.columns}
    with pytest.raises(BadRowError, match=f"^no '{known.columns[-1]}'$"):
        formats.detect({**row, known.columns[-1]: None})
