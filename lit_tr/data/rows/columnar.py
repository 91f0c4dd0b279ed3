"""Files of columns: Parquet and Arrow, read row by row from any row on.

`datasets` reads these too, but tells no row's location and decodes the rows that it skips.
"""

from abc import abstractmethod
from bisect import bisect_right
from itertools import accumulate
from typing import Any

import pyarrow
from pyarrow import ipc, parquet

from lit_tr.data.rows.files import File, Open
from lit_tr.errors import BadRowError

BATCH = 1024
"""Rows that are decompressed at a time."""
DECODED = 32
"""Rows that are made Python objects at a time."""
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


class Columnar(File):
    """A file of columns, of which some rows are decoded at a time; a state is the number of a row."""

    _file: Any

    def __init__(self, state: int) -> None:
        self.state, self._first = state, 0
        self._batch: Any = ()
        self._from = 0
        self._rows: list[Any] = []

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @abstractmethod
    def _reach(self, row: int) -> bool:
        """Decompress the rows around one; return whether there is such a row."""

    def __next__(self) -> Any:
        """Return the next row."""
        if not self._reach(self.state):
            raise StopIteration
        self.state += 1
        try:
            return self._decoded(self.state - 1)
        except (ValueError, OverflowError) as error:
            raise BadRowError("a value cannot be decoded", str(error)) from error

    def _decoded(self, row: int) -> Any:
        if not self._from <= row < self._from + len(self._rows):
            at = row - self._first
            try:
                rows = self._batch.slice(at, DECODED).to_pylist()
            except (ValueError, OverflowError):  # perhaps that of a later row
                rows = self._batch.slice(at, 1).to_pylist()
            self._from, self._rows = row, rows
        return self._rows[row - self._from]


class Parquet(Columnar):
    """Parquet; a row is reached by its row group."""

    def __init__(self, opens: Open, state: int) -> None:
        super().__init__(state)
        self._file = opens()
        self._table = parquet.ParquetFile(self._file)
        groups = range(self._table.num_row_groups)
        self._ends = list(accumulate(self._table.metadata.row_group(group).num_rows for group in groups))
        self._group = -1

    def skip(self, count: int) -> int:
        """Pass over some rows."""
        passed = max(min(count, self._table.metadata.num_rows - self.state), 0)
        self.state += passed
        return passed

    def _reach(self, row: int) -> bool:
        group = bisect_right(self._ends, row)
        if group == len(self._ends):
            return False
        if group != self._group:
            self._group, self._first, self._batch = group, self._ends[group - 1] if group else 0, ()
            self._batches = self._table.iter_batches(BATCH, row_groups=[group])
        while row >= self._first + len(self._batch):
            self._first += len(self._batch)
            self._batch = next(self._batches, None)
            if self._batch is None:
                raise EOFError("a row group has fewer rows than the file says")
        return True


class Arrow(Columnar):
    """Arrow's files and streams, as `datasets` writes them; a row is reached by passing over those before."""

    def __init__(self, opens: Open, state: int) -> None:
        super().__init__(0)
        self._file = opens()
        try:
            whole = ipc.open_file(self._file)
            self._batches = map(whole.get_batch, range(whole.num_record_batches))
        except pyarrow.ArrowInvalid:
            self._file.seek(-len(END_OF_STREAM), 2)
            if self._file.read() != END_OF_STREAM:
                raise
            self._file.seek(0)
            self._batches = iter(ipc.open_stream(self._file))
        self.skip(state)

    def skip(self, count: int) -> int:
        """Pass over some rows."""
        before = self.state
        self.state = before + count if self._reach(before + count - 1) else max(self._first + len(self._batch), before)
        return self.state - before

    def _reach(self, row: int) -> bool:
        while row >= self._first + len(self._batch):
            batch = next(self._batches, None)
            if batch is None:
                return False
            batch.validate(full=True)  # reading what is not valid may end the process
            self._first, self._batch = self._first + len(self._batch), batch
        return True
