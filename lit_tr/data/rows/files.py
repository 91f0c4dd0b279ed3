"""Files of rows, wherever they lie: JSON lines, JSON, CSV, Parquet and Arrow, read row by row from any row on."""

import csv
import io
import json
import sys
import zlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from itertools import accumulate
from pathlib import PurePosixPath
from typing import Any

import fsspec
import pyarrow
from pyarrow import ipc, parquet

from lit_tr.errors import BadRowError, UserError

LONGEST = 2**26
"""Bytes of the longest line that is read as a row."""
BATCH = 1024
"""Rows of a columnar file that are decoded at a time."""
BROKEN = (EOFError, zlib.error, OSError)
csv.field_size_limit(sys.maxsize)


class File(ABC):
    """The rows of one file, one after the other.

    Attributes:
        place: what opens the file again at the row that comes next; plain data.
    """

    place: int

    @abstractmethod
    def __next__(self) -> Any:
        """Return the next row; None stands for an empty line.

        Raises:
            BadRowError: it cannot be read, and the next call goes on after it.
            StopIteration: there is none.
        """

    @abstractmethod
    def skip(self, count: int) -> int:
        """Pass over some rows without reading them; return how many there were."""

    @abstractmethod
    def close(self) -> None:
        """Close the file."""


def open_file(url: str, place: int = 0) -> File:
    """Open a file of rows, at the start or at a place of before.

    Args:
        url: a path, or a URL of fsspec; its ending says what it is, `.gz` and other compressions may follow.
        place: `place` of a `File` of this URL.

    Raises:
        UserError: there is no such file, or it is of an unknown kind, or another one than its ending says.
    """
    kind: Any = KINDS[suffix(url)]
    try:
        return kind(fsspec.open(url, "rb", compression="infer").open(), place)
    except FileNotFoundError as error:
        raise UserError(f"{url}: no such file") from error
    except (OSError, pyarrow.ArrowInvalid, ValueError) as error:
        raise UserError(f"{url}: cannot be read: {error}") from error


def suffix(url: str) -> str:
    """Return the ending that says what a file is.

    Raises:
        UserError: it is an unknown one.
    """
    path = PurePosixPath(url.partition("?")[0])
    ending = path.suffix
    if ending.removeprefix(".") in COMPRESSIONS:
        ending = PurePosixPath(path.stem).suffix
    if ending not in KINDS:
        raise UserError(
            f"{url}: unknown kind of file {ending!r}; known are {', '.join(KINDS)}, compressed "
            f"({', '.join(COMPRESSIONS)}) or not"
        )
    return ending


class Lines(File):
    """JSON lines; a place is a number of bytes."""

    def __init__(self, file: Any, place: int) -> None:
        self._file, self.place = file, place
        self._ended = False
        if place:
            file.seek(place)

    def __next__(self) -> Any:
        """Return the next row."""
        try:
            line = self._line()
        except BROKEN as error:
            self._ended = True
            raise BadRowError("the file is broken or cut short from here on", str(error)) from error
        if not line:
            raise StopIteration
        if len(line) > LONGEST:
            raise BadRowError(f"the line is longer than {LONGEST} bytes")
        if not line.strip():
            return None
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadRowError("invalid JSON", str(error)) from error
        if not isinstance(row, dict):
            raise BadRowError("the row is no JSON object", type(row).__name__)
        return row

    def skip(self, count: int) -> int:
        """Pass over some lines."""
        passed = 0
        try:
            while passed < count and self._line():
                passed += 1
        except BROKEN:  # for whoever reads the row to say
            self._ended = True
        return passed

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _line(self) -> bytes:
        """Return the next line, the first bytes of one that is too long; nothing at the end."""
        if self._ended:
            return b""
        line = part = self._file.readline(LONGEST + 1)
        self.place += len(part)
        while len(part) > LONGEST and not part.endswith(b"\n"):
            part = self._file.readline(LONGEST + 1)
            self.place += len(part)
        return line


class Counted(File):
    """A file whose place is the number of its next row, and is reached by passing over those before."""

    def __init__(self, place: int) -> None:
        self.place = 0
        self.skip(place)

    def skip(self, count: int) -> int:
        """Pass over some rows."""
        for passed in range(count):
            try:
                next(self)
            except StopIteration:
                return passed
            except BadRowError:
                continue
        return count


class Listed(Counted):
    """A JSON file: one list of rows, which is held whole, or lines after all."""

    def __new__(cls, file: Any, place: int) -> Any:
        """Choose by the first character that is no space."""
        start = file.read(1)
        while start.isspace():
            start = file.read(1)
        file.seek(0)
        return super().__new__(cls) if start == b"[" else Lines(file, place)

    def __init__(self, file: Any, place: int) -> None:
        with file:
            self._rows = json.load(file)
        super().__init__(place)

    def close(self) -> None:
        """Let the rows go."""
        self._rows = []

    def __next__(self) -> Any:
        """Return the next row."""
        if self.place >= len(self._rows):
            raise StopIteration
        row = self._rows[self.place]
        self.place += 1
        if not isinstance(row, dict):
            raise BadRowError("the row is no JSON object", type(row).__name__)
        return row


class Table(Counted):
    """CSV with a head of column names; an empty field is one that is not there."""

    def __init__(self, file: Any, place: int) -> None:
        self._text = io.TextIOWrapper(file, "utf-8-sig", "surrogateescape", newline="")
        self._rows = csv.DictReader(self._text, strict=True)
        super().__init__(place)

    def __next__(self) -> Any:
        """Return the next row."""
        self.place += 1
        try:
            row = next(self._rows)
        except csv.Error as error:
            raise BadRowError("invalid CSV", str(error)) from error
        if None in row or None in row.values():
            raise BadRowError("the row has another number of fields than the head")
        return {name: value or None for name, value in row.items()}

    def close(self) -> None:
        """Close the file."""
        self._text.close()


class Columnar(File):
    """A file of columns, of which some rows are decoded at a time; a place is the number of a row."""

    _file: Any

    def __init__(self, place: int) -> None:
        self.place, self._first = place, 0
        self._batch: Any = ()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @abstractmethod
    def _reach(self, row: int) -> bool:
        """Decode the rows around one; return whether there is such a row."""

    def __next__(self) -> Any:
        """Return the next row."""
        try:
            found = self._reach(self.place)
        except (OSError, pyarrow.ArrowException) as error:
            self._reach = lambda row: False  # type: ignore[method-assign]
            raise BadRowError("the file is broken or cut short from here on", str(error)) from error
        if not found:
            raise StopIteration
        at, names = self.place - self._first, self._batch.schema.names
        self.place += 1
        return {name: column[at].as_py() for name, column in zip(names, self._batch.columns, strict=True)}


class Parquet(Columnar):
    """Parquet; a row is reached by its row group."""

    def __init__(self, file: Any, place: int) -> None:
        super().__init__(place)
        self._file = file
        self._table = parquet.ParquetFile(file)
        groups = range(self._table.num_row_groups)
        self._ends = list(accumulate(self._table.metadata.row_group(group).num_rows for group in groups))
        self._group = -1

    def skip(self, count: int) -> int:
        """Pass over some rows."""
        passed = max(min(count, self._table.metadata.num_rows - self.place), 0)
        self.place += passed
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
            self._batch = next(self._batches)
        return True


class Arrow(Columnar):
    """Arrow's files and streams, as `datasets` writes them; a row is reached by passing over those before."""

    def __init__(self, file: Any, place: int) -> None:
        super().__init__(0)
        self._file = file
        try:
            whole = ipc.open_file(file)
            self._batches = map(whole.get_batch, range(whole.num_record_batches))
        except pyarrow.ArrowInvalid:
            file.seek(0)
            self._batches = iter(ipc.open_stream(file))
        self.skip(place)

    def skip(self, count: int) -> int:
        """Pass over some rows."""
        before = self.place
        self.place = before + count if self._reach(before + count - 1) else max(self._first + len(self._batch), before)
        return self.place - before

    def _reach(self, row: int) -> bool:
        while row >= self._first + len(self._batch):
            batch = next(self._batches, None)
            if batch is None:
                return False
            self._first, self._batch = self._first + len(self._batch), batch
        return True


KINDS = {
    ".jsonl": Lines,
    ".ndjson": Lines,
    ".json": Listed,
    ".csv": Table,
    ".parquet": Parquet,
    ".arrow": Arrow,
}
COMPRESSIONS = ("gz", "bz2", "xz", "zst")
