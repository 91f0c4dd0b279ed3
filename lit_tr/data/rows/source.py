"""Where rows come from: a source is any subclass of `Source`, named by `class_path`."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, Self

from datasets.fingerprint import Hasher

from lit_tr.data.example import Row
from lit_tr.data.formats.conversion import Conversion
from lit_tr.errors import BadRowError, UserError


class Record(NamedTuple):
    """What stands at one location of a source.

    Attributes:
        location: names the file and the row, for messages.
        row: the row; the error where it cannot be read; None where there is none, as on an empty line.
        conversion: how the row becomes examples.
    """

    location: str
    row: Row | BadRowError | None
    conversion: Conversion = Conversion()


class Cursor(ABC):
    """Goes through the records of a source."""

    def __iter__(self) -> Self:
        """Return the cursor itself."""
        return self

    @abstractmethod
    def __next__(self) -> Record:
        """Return the next record.

        Raises:
            StopIteration: the source has ended.
            UserError: what comes cannot be read, and nor can what comes after it.
        """

    @abstractmethod
    def skip(self, count: int) -> int:
        """Pass over some records; return how many there were."""

    @abstractmethod
    def state(self) -> Any:
        """Return what `Source.records` needs to go on here, plain data."""


class Source:
    """Rows of preference data, each with its location; a subclass has `rows` or `records`.

    Attributes:
        conversion: how its rows become examples.
        streams: its first rows can be had before the last ones were read.
    """

    conversion: Conversion = Conversion()
    streams: bool = True

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Yield `(location, row)`; the location names the file and the row, for messages.

        Raises:
            UserError: there is no such data, or it cannot be read.
        """
        for location, row, _ in self.records():
            if isinstance(row, BadRowError):
                raise UserError(f"{location}: {row}") from row
            if row is not None:
                yield location, row

    def records(self, order: int | None = None, state: Any = None) -> Cursor:
        """Return a cursor, at the start or in an earlier state.

        Args:
            order: seed of the order in which large parts, such as files, come; None is their own order. Rows of one
                part come one after the other.
            state: `state()` of a cursor of the same order.
        """
        return Replay(self.rows(), state or 0, self.conversion)

    def fingerprint(self) -> str | None:
        """Return a hash that is the same at the next start exactly when rows and conversion are.

        None, as here, where that cannot be known: a subclass may read anything. One that knows returns `hash_of` what
        decides its rows.
        """
        return None


def hash_of(conversion: Conversion, *decisive: Any) -> str | None:
    """Return a hash of what decides the rows of a source, and of their conversion.

    A format function goes in by its code: with the whole module where it can be imported, since `datasets` hashes such
    a function by its name alone. What that module imports does not go in.

    Returns:
        None where something cannot be hashed.
    """
    try:
        return Hasher.hash([decisive, conversion, _code(conversion.format)])
    except Exception:  # whatever pickling an object of the user's may raise
        return None


def _code(format: Any) -> str | None:
    """Return the source of the module of a function, of the class of an object; of a script `datasets` does better."""
    if isinstance(format, partial):
        return _code(format.func)
    module = inspect.getmodule(format) or inspect.getmodule(type(format))
    if format is None or module is None or module.__name__ == "__main__":
        return None
    return inspect.getsource(module)


class Replay(Cursor):
    """Reads what can only be read from the start; its state is the number of rows that were read."""

    def __init__(self, rows: Iterator[tuple[str, Row]], count: int, conversion: Conversion) -> None:
        self._rows, self._count, self._conversion = rows, 0, conversion
        self.skip(count)

    def __next__(self) -> Record:
        """Return the next record."""
        location, row = next(self._rows)
        self._count += 1
        return Record(location, row, self._conversion)

    def skip(self, count: int) -> int:
        """Read some rows for nothing."""
        passed = sum(1 for _ in islice(self._rows, count))
        self._count += passed
        return passed

    def state(self) -> int:
        """Return how many rows were read."""
        return self._count
