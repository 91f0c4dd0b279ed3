"""Files of text: JSON lines, JSON and CSV, read row by row from any row on.

`datasets` reads these too, but fails a whole file at one bad line.
"""

import csv
import io
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from lit_tr.errors import BadRowError

LONGEST = 2**26
"""Bytes of the longest line that is read as a row."""
csv.field_size_limit(sys.maxsize)

Open = Callable[[], Any]
"""Opens the bytes of a file, decompressed."""


class File(ABC):
    """The rows of one file, one after the other; its methods raise `opening.BROKEN` where the file is.

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


def _object(row: Any) -> Any:
    if not isinstance(row, dict):
        raise BadRowError("the row is no JSON object", type(row).__name__)
    return row
