"""Rows without those that a file lists."""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lit_tr.data.formats.conversion import Conversion
from lit_tr.data.rows.memory import as_source
from lit_tr.data.rows.source import Cursor, Record, Source, hash_of
from lit_tr.errors import explained


@dataclass(frozen=True)
class Without(Source):
    """Rows of a source without those that a file lists, such as `flipped.jsonl` of a `CollaborativeReward`.

    A row that gives several pairs is left out where one of them is listed.

    Args:
        source: the rows, the same as those that were listed; whatever `as_source` takes.
        listed: a file of JSON lines with the `location` of a row each; `bad_rows...jsonl` is one, too.
    """

    source: Source
    listed: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", as_source(self.source))

    def __str__(self) -> str:
        """Return the source, and the list."""
        return f"{self.source} without {self.listed}"

    @property
    def streams(self) -> bool:  # type: ignore[override]
        """Whether the source does."""
        return self.source.streams

    @property
    def conversion(self) -> Conversion:  # type: ignore[override]
        """That of the source."""
        return self.source.conversion

    @cached_property
    def locations(self) -> frozenset[str]:
        """The locations that are left out.

        Raises:
            UserError: the file cannot be read, or is not of such lines.
        """
        said = f"Without: {self.listed} is no file of JSON lines with a location each"
        with explained(said, OSError, ValueError, KeyError, TypeError):
            return frozenset(json.loads(line)["location"] for line in Path(self.listed).read_text().splitlines())

    def records(self, order: int | None = None, state: Any = None) -> Cursor:
        """Return a cursor over the source's records, where what is listed is no row."""
        return _Cursor(self.source.records(order, state), self.locations)

    def fingerprint(self) -> str | None:
        """Return a hash of the source's own and of the locations; None where it has none."""
        own = self.source.fingerprint()
        return None if own is None else hash_of(self.conversion, "Without", own, sorted(self.locations))


class _Cursor(Cursor):
    def __init__(self, cursor: Cursor, left_out: frozenset[str]) -> None:
        self._cursor, self._left_out = cursor, left_out

    def __next__(self) -> Record:
        record = next(self._cursor)
        return record._replace(row=None) if record.location in self._left_out else record

    def skip(self, count: int) -> int:
        return self._cursor.skip(count)

    def state(self) -> Any:
        return self._cursor.state()
