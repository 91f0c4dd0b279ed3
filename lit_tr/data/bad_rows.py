"""Rows that cannot be trained on: counted, listed, and too many of them end the run."""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from lit_tr.errors import BadRowError, UserError

MANY = 1000
"""Rows after which a share of bad ones says something about those to come."""


class BadRow(NamedTuple):
    """A row that is left out.

    Args:
        location: names the file and the row.
        reason: what is wrong, in words that many rows may share.
        detail: what is particular to this row.
        tokens: tokens of the prompt with the longer response, of a row that is too long.
    """

    location: str
    reason: str
    detail: str = ""
    tokens: int | None = None

    @classmethod
    def of(cls, location: str, error: BadRowError) -> "BadRow":
        """Return the row that an error was raised for."""
        return cls(location, error.reason, error.detail, error.tokens)

    def __str__(self) -> str:
        """Return the location, the reason and the detail."""
        return f"{self.location}: {self.reason}{f' ({self.detail})' if self.detail else ''}"


@dataclass
class BadRows:
    """Counts bad rows, and ends a run that has too many of them.

    Args:
        most: how many may be left out: a share of the rows below 1, a count from 1 on.
        rows: number of rows that were processed, bad ones too.
        found: the bad rows.
        option: what sets `most`.
    """

    most: float
    rows: int = 0
    found: list[BadRow] = field(default_factory=list)
    option: str = "data.max_bad_rows"

    def add(self, rows: int, found: Iterable[BadRow], judge: bool = True) -> None:
        """Count more rows.

        Args:
            rows: how many.
            found: the bad ones among them.
            judge: whether a share that is too high ends the run; False waits for more rows, unless most are bad.

        Raises:
            UserError: there are too many bad ones; the message names the first.
        """
        self.rows += rows
        self.found += found
        share = self.most if judge else max(self.most, 0.5 if self.rows >= MANY else 1)
        allowed = self.most if self.most == 0 or self.most >= 1 else share * self.rows
        if len(self.found) > allowed:
            raise UserError(
                f"{len(self.found)} of {self.rows} rows are bad ({self.reasons}); the first is {self.found[0]}. Fix "
                f"them, or let more be left out by {self.option}, now {self.most:g} (a share below 1, or a count)"
            )

    @property
    def reasons(self) -> str:
        """How many rows are bad for which reason."""
        counts = Counter(row.reason for row in self.found).most_common()
        return "; ".join(f"{count} x {reason}" for reason, count in counts)


def write(path: Path, rows: list[BadRow], mode: Literal["w", "a"] = "w") -> None:
    """Write bad rows as JSON lines with `location`, `reason`, `detail` and `tokens`, or append them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open(mode) as file:
        file.writelines(json.dumps(row._asdict()) + "\n" for row in rows)
