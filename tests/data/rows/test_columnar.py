import pyarrow
import pytest
from pyarrow import ipc, parquet

from lit_tr.data.rows import Rows
from lit_tr.data.rows.opening import open_file
from lit_tr.errors import BadRowError, UserError

TABLE = pyarrow.Table.from_pylist([{"n": str(n), "text": f"é{n}\n" * (n % 4)} for n in range(100)])


def test_a_broken_file_is_named_with_the_row_where_it_breaks(tmp_path):
    path, found = tmp_path / "a.parquet", []
    parquet.write_table(TABLE, path, row_group_size=17)
    data = bytearray(path.read_bytes())
    data[len(data) // 4 : len(data) // 4 + 200] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(UserError, match="the file is broken or cut short from here on") as error:
        found.extend(record.row for record in Rows(path).records())
    assert f"a.parquet, row {len(found)}: " in str(error.value)
    assert found == TABLE.to_pylist()[: len(found)]


def test_a_stream_of_arrow_without_its_end_is_refused(tmp_path):
    path = tmp_path / "a.arrow"
    with ipc.new_stream(str(path), TABLE.schema) as writer:
        writer.write_table(TABLE)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match="a.arrow: cannot be read as .arrow"):
        open_file(str(path))


def test_a_value_that_cannot_be_decoded_is_a_bad_row(tmp_path):
    texts = [b"%d" % n for n in range(40)]
    texts[17] = b"\xff"
    column = pyarrow.array(texts).view(pyarrow.string())
    parquet.write_table(pyarrow.table({"n": column}), tmp_path / "a.parquet")
    found = [record.row for record in Rows(tmp_path / "a.parquet").records()]
    assert isinstance(found[17], BadRowError)
    assert found[17].reason == "a value cannot be decoded"
    assert found[:17] + found[18:] == [{"n": str(n)} for n in range(40) if n != 17]
