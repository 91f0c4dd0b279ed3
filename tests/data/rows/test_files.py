import pytest

from lit_tr.data.rows.files import LONGEST
from lit_tr.data.rows.opening import open_file
from lit_tr.errors import BadRowError, UserError


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"n": 1', "invalid JSON"),
        (b'{"n": "\xff"}', "invalid JSON"),
        (b"[1]", "the row is no JSON object"),
        (b"[" * 100_000, "invalid JSON"),
        (b'{"n": "' + b"x" * LONGEST + b'"}', f"the line is longer than {LONGEST} bytes"),
    ],
    ids=["half", "bytes", "list", "deep", "long"],
)
def test_a_bad_line_is_named_and_the_next_one_is_read(tmp_path, line, reason):
    (tmp_path / "a.jsonl").write_bytes(b'{"n": 0}\n' + line + b'\n\n{"n": 2}')
    file = open_file(str(tmp_path / "a.jsonl"))
    assert next(file) == {"n": 0}
    with pytest.raises(BadRowError) as error:
        next(file)
    assert error.value.reason == reason
    assert next(file) is None  # an empty line is no row
    assert next(file) == {"n": 2}
    assert next(file, None) is None
    assert open_file(str(tmp_path / "a.jsonl")).skip(9) == 4


@pytest.mark.parametrize("text", ["a,b\n1,2,3\n4,5\n", "a,b\n1\n4,5\n"])
def test_a_row_of_csv_with_other_fields_than_the_head(tmp_path, text):
    (tmp_path / "a.csv").write_text(text)
    file = open_file(str(tmp_path / "a.csv"))
    with pytest.raises(BadRowError, match="another number of fields"):
        next(file)
    assert next(file) == {"a": "4", "b": "5"}


def test_broken_quotes_in_csv(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n"x"y,2\n')
    with pytest.raises(BadRowError, match="invalid CSV"):
        next(open_file(str(tmp_path / "a.csv")))


def test_a_list_that_is_cut_gives_one_message(tmp_path):
    (tmp_path / "a.json").write_text('[{"n": 1}, {"n":')
    with pytest.raises(UserError, match="a.json: cannot be read as .json: Expecting value"):
        open_file(str(tmp_path / "a.json"))
