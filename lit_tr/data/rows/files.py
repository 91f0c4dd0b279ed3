"""Files of rows, wherever they lie: JSON lines, JSON, CSV, Parquet and Arrow, read row by row from any row on.

`datasets` reads these too, but fails a whole file at one bad line, tells no row's location, and decodes what it skips.
"""

import csv
import io
import json
import lzma
import sys
import zlib
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate
from pathlib import PurePosixPath
from typing import Any

import fsspec
import pyarrow
from fsspec.core import url_to_fs
from pyarrow import ipc, parquet

from lit_tr.errors import BadRowError, UserError

LONGEST = 2**26
"""Bytes of the longest line that is read as a row."""
BATCH = 1024
"""Rows of a columnar file that are decoded at a time."""
BROKEN = (EOFError, zlib.error, lzma.LZMAError, OSError, pyarrow.ArrowException)
"""What reading a file raises where it is cut short, corrupt or out of reach."""
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
csv.field_size_limit(sys.maxsize)

Open = Callable[[], Any]


class File(ABC):
    """The rows of one file, one after the other; its methods raise `BROKEN` where the file is.

    Attributes:
        state: what opens the file again at the row that comes next; plain data.
    """

    state: int

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


def open_file(url: str, state: int = 0) -> File:
    """Open a file of rows, at the start or in an earlier state.

    Args:
        url: a path, or a URL of fsspec; its ending says what it is, `.gz` and other compressions may follow.
        state: `state` of a `File` of this URL.

    Raises:
        UserError: there is no such file, or it is of an unknown kind, or another one than its ending says.
    """
    ending, compression = endings(url)
    if ending not in KINDS:
        raise UserError(
            f"{url}: unknown kind of file {ending!r}; known are {', '.join(KINDS)}, compressed "
            f"({', '.join(COMPRESSIONS)}) or not"
        )
    try:
        return KINDS[ending](partial(_open, url, compression), state)
    except FileNotFoundError as error:
        raise UserError(f"{url}: no such file") from error
    except (*BROKEN, ValueError, RecursionError) as error:
        raise UserError(f"{url}: cannot be read as {ending}: {error}") from error


def endings(url: str) -> tuple[str, str]:
    """Return the endings that say what a file is and how it is compressed, in lower case; the second may be empty."""
    path = PurePosixPath(url.partition("?")[0].lower())
    if path.suffix in COMPRESSIONS:
        return PurePosixPath(path.stem).suffix, path.suffix
    return path.suffix, ""


@contextmanager
def reading(location: str) -> Iterator[None]:
    """Say where a file is broken.

    Raises:
        UserError: it is, at this location.
    """
    try:
        yield
    except BROKEN as error:
        raise UserError(f"{location}: the file is broken or cut short from here on: {error}") from error


def version_of(url: str) -> list[Any] | None:
    """Return what changes with the content of a file: size, times, checksums; None where only its size is known."""
    system, inside = url_to_fs(url)
    info = system.info(inside)
    known = [str(info.get(key)) for key in VERSIONS]
    return [info.get("size"), *known] if any(info.get(key) for key in VERSIONS) else None


def _open(url: str, compression: str) -> Any:
    if compression != ".zst":
        return fsspec.open(url, "rb", compression=COMPRESSIONS.get(compression)).open()
    return io.BufferedReader(pyarrow.CompressedInputStream(fsspec.open(url, "rb").open(), "zstd"))


class Lines(File):
    """JSON lines; a state is a number of bytes."""

    def __init__(self, opens: Open, state: int) -> None:
        self._file, self.state = opens(), state
        if self._file.seekable():
            self._file.seek(state)
        else:
            while state > 0:
                state -= len(self._file.read(min(state, 2**20))) or state

    def __next__(self) -> Any:
        """Return the next row."""
        line = self._line()
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
        return _object(row)

    def skip(self, count: int) -> int:
        """Pass over some lines."""
        return next((passed for passed in range(count) if not self._line()), count)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _line(self) -> bytes:
        """Return the next line, the first bytes of one that is too long; nothing at the end."""
        line = part = self._file.readline(LONGEST + 1)
        self.state += len(part)
        while len(part) > LONGEST and not part.endswith(b"\n"):
            part = self._file.readline(LONGEST + 1)
            self.state += len(part)
        return line


class Counted(File):
    """A file whose state is the number of its next row, and is reached by passing over those before."""

    def __init__(self, state: int) -> None:
        self.state = 0
        self.skip(state)

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


class Listed(File):
    """A JSON file with one list of rows, which is held whole."""

    def __init__(self, opens: Open, state: int) -> None:
        with opens() as file:
            self._rows = json.load(file)
        self.state = state

    def __next__(self) -> Any:
        """Return the next row."""
        if self.state >= len(self._rows):
            raise StopIteration
        self.state += 1
        return _object(self._rows[self.state - 1])

    def skip(self, count: int) -> int:
        """Pass over some rows."""
        passed = max(min(count, len(self._rows) - self.state), 0)
        self.state += passed
        return passed

    def close(self) -> None:
        """Let the rows go."""
        self._rows = []


def listed_or_lines(opens: Open, state: int) -> File:
    """Open a JSON file: a list of rows, or JSON lines after all."""
    with opens() as file:
        start = file.read(1)
        while start.isspace():
            start = file.read(1)
    return (Listed if start == b"[" else Lines)(opens, state)


class Table(Counted):
    """CSV with a head of column names; an empty field is one that is not there."""

    def __init__(self, opens: Open, state: int, delimiter: str = ",") -> None:
        self._text = io.TextIOWrapper(opens(), "utf-8-sig", "surrogateescape", newline="")
        self._rows = csv.DictReader(self._text, strict=True, delimiter=delimiter)
        super().__init__(state)

    def __next__(self) -> Any:
        """Return the next row."""
        try:
            row = next(self._rows)
        except csv.Error as error:
            self.state += 1
            raise BadRowError("invalid CSV", str(error)) from error
        self.state += 1
        if None in row or None in row.values():
            raise BadRowError("the row has another number of fields than the head")
        return {name: value or None for name, value in row.items()}

    def close(self) -> None:
        """Close the file."""
        self._text.close()


class Columnar(File):
    """A file of columns, of which some rows are decoded at a time; a state is the number of a row."""

    _file: Any

    def __init__(self, state: int) -> None:
        self.state, self._first = state, 0
        self._batch: Any = ()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @abstractmethod
    def _reach(self, row: int) -> bool:
        """Decode the rows around one; return whether there is such a row."""

    def __next__(self) -> Any:
        """Return the next row."""
        if not self._reach(self.state):
            raise StopIteration
        at, names = self.state - self._first, self._batch.schema.names
        self.state += 1
        try:
            return {name: column[at].as_py() for name, column in zip(names, self._batch.columns, strict=True)}
        except (ValueError, OverflowError) as error:
            raise BadRowError("a value cannot be decoded", str(error)) from error


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


def _object(row: Any) -> Any:
    if not isinstance(row, dict):
        raise BadRowError("the row is no JSON object", type(row).__name__)
    return row


KINDS: dict[str, Callable[[Open, int], File]] = {
    ".jsonl": Lines,
    ".ndjson": Lines,
    ".json": listed_or_lines,
    ".csv": Table,
    ".tsv": partial(Table, delimiter="\t"),
    ".parquet": Parquet,
    ".arrow": Arrow,
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
VERSIONS = (
    *("mtime", "created", "ETag", "etag", "Content-MD5", "Digest", "Last-Modified", "LastModified", "last_modified"),
    *("md5Hash", "blob_id"),
)
"""Under one of these names a file system of fsspec says what changes with a file."""
