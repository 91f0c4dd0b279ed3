"""Several sources as one.

`datasets` interleaves too, but tells no row's location, and neither passes over rows without decoding them nor gives
each source a conversion of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from lit_tr.data.rows.memory import as_source
from lit_tr.data.rows.source import Cursor, Record, Source, hash_of
from lit_tr.errors import UserError


@dataclass(frozen=True)
class Mixture(Source):
    """Rows of several sources, drawn at random by weight.

    Args:
        sources: the sources; whatever `as_source` takes. Each keeps its own conversion.
        weights: how often each is drawn from, above 0; None draws from all alike.
        until: `first_exhausted` ends with the first source that ends, so that no row comes twice; `all_exhausted`
            begins those anew that have ended until each has ended once.
        seed: seed of the draws.

    Raises:
        UserError: there are no sources, or the weights are not above 0, one for each.
    """

    sources: list[Source]
    weights: list[float] | None = None
    until: Literal["first_exhausted", "all_exhausted"] = "first_exhausted"
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("Mixture: give at least one source")
        object.__setattr__(self, "sources", list(map(as_source, self.sources)))
        if self.weights is not None and (len(self.weights) != len(self.sources) or min(self.weights) <= 0):
            raise UserError(f"Mixture: weights {self.weights} must be above 0, one for each source")

    @property
    def streams(self) -> bool:  # type: ignore[override]
        """Whether all of its sources do."""
        return all(source.streams for source in self.sources)

    def records(self, order: int | None = None, state: Any = None) -> Cursor:
        """Return a cursor; the order is that of the draws, and of each source."""
        return _MixtureCursor(self, order, state)

    def fingerprint(self) -> str | None:
        """Return a hash of the sources' own and of how they are drawn; None where one of them has none."""
        members = [source.fingerprint() for source in self.sources]
        if None in members:
            return None
        return hash_of(self.conversion, "Mixture", members, self.weights, self.until, self.seed)


class _MixtureCursor(Cursor):
    """Draws from the cursors of a mixture's sources; the number of a draw decides its outcome."""

    def __init__(self, mixture: Mixture, order: int | None, state: dict[str, Any] | None) -> None:
        self._mixture, self._order = mixture, order
        state = state or {"draws": 0, "rounds": [0] * len(mixture.sources), "states": [None] * len(mixture.sources)}
        self._draws, self._rounds = state["draws"], list(state["rounds"])
        self._cursors = [self._cursor(i, cursor) for i, cursor in enumerate(state["states"])]

    def __next__(self) -> Record:
        found = self._draw(lambda cursor: next(cursor, None))
        if found is None:
            raise StopIteration
        return found

    def skip(self, count: int) -> int:
        return next((passed for passed in range(count) if not self._draw(lambda cursor: cursor.skip(1))), count)

    def state(self) -> dict[str, Any]:
        states = [cursor.state() for cursor in self._cursors]
        return {"draws": self._draws, "rounds": list(self._rounds), "states": states}

    def _cursor(self, number: int, state: Any = None) -> Cursor:
        order = None if self._order is None else self._order + self._rounds[number]
        return self._mixture.sources[number].records(order, state)

    def _draw(self, take: Callable[[Cursor], Any]) -> Any:
        """Draw a source and take from it; return nothing at the end."""
        mixture = self._mixture
        draw = Random(f"{mixture.seed} {self._order} {self._draws}")
        number = draw.choices(range(len(mixture.sources)), mixture.weights)[0]
        taken = take(self._cursors[number])
        if not taken:
            self._rounds[number] += 1
            if mixture.until == "first_exhausted" or all(self._rounds):
                return None
            self._cursors[number] = self._cursor(number)
            taken = take(self._cursors[number])
            if not taken:
                raise UserError(f"{mixture.sources[number]} has no rows")
        self._draws += 1
        return taken
