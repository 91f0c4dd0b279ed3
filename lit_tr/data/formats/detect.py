"""Which format the rows have, by their columns; and what to write where it is none that is known."""

from collections.abc import Mapping
from difflib import get_close_matches
from functools import lru_cache

from lit_tr.data.example import Format, Row
from lit_tr.data.formats.table import FORMATS, KnownFormat
from lit_tr.errors import BadRowError

MAPPED = (
    ("prompt", "chosen", "rejected"),
    ("prompt", "completion", "label"),
    ("prompt", "responses", "ranks"),
    ("prompt", "completion"),
    ("chosen", "rejected"),
)
"""What the columns of other rows are mapped to."""

SYNONYMS = {
    "prompt": ("question", "instruction", "query", "input", "context", "history", "post", "problem", "user"),
    "chosen": ("accepted", "preferred", "winner", "win", "better", "best", "positive", "pos", "good", "response_j"),
    "rejected": ("dispreferred", "loser", "lose", "worse", "worst", "negative", "neg", "bad", "response_k", "unchosen"),
    "completion": ("response", "answer", "output", "generation", "reply", "assistant", "text"),
    "label": ("kto_tag", "desirable", "is_good", "liked", "thumbs_up", "feedback"),
    "responses": ("answers", "outputs", "generations", "candidates", "completions"),
    "ranks": ("rank", "ranking", "rankings", "order"),
}


def known(row: Row) -> KnownFormat:
    """Return what is known of the format of a row.

    Raises:
        BadRowError: the row has the columns of no format, or lacks a value.
    """
    if not isinstance(row, Mapping):
        raise BadRowError("the row is not an object with columns", type(row).__name__)
    columns = frozenset(row)
    found = _found(columns, frozenset(column for column in columns if row[column] is None))
    if isinstance(found, KnownFormat):
        return found
    raise BadRowError(*found)


def detect(row: Row) -> Format:
    """Return the format of a row by its columns.

    Raises:
        BadRowError: the row has the columns of no format, or lacks a value.
    """
    return known(row).format


@lru_cache(maxsize=1024)
def _found(columns: frozenset[str], null: frozenset[str]) -> KnownFormat | tuple[str, ...]:
    """Return the format of rows with these columns, or why there is none, and more of it."""
    fitting = [one for one in FORMATS if columns.issuperset(one.columns) and columns.isdisjoint(one.without)]
    for one in fitting:
        if null.isdisjoint(one.columns):
            return one
    if fitting:
        return (f"no {next(column for column in fitting[0].columns if column in null)!r}",)
    return "unknown format", _hint(sorted(map(str, columns)))


def _hint(columns: list[str]) -> str:
    """Return what is missing, and the line that maps the columns to those of a format."""
    likely = {names: _mapping(columns, names) for names in MAPPED}
    names, found = max(likely.items(), key=lambda one: (len(one[1]) / len(one[0]), len(one[1])))
    said = f"the columns are {', '.join(columns) or 'none'}"
    if not found:
        return f"{said}; `lit-tr data formats` shows what is known, and `format` takes a function of your own"
    missing = [name for name in names if name not in found]
    renamed = ", ".join(f"{name}: {column}" for name, column in found.items() if name != column)
    line = f"; `columns: {{{renamed}}}` names them" if renamed else ""
    lacks = f", and {' and '.join(map(repr, missing))} is missing" if missing else ""
    return f"{said}; closest is {'+'.join(names)}{lacks}{line}"


def _mapping(columns: list[str], names: tuple[str, ...]) -> dict[str, str]:
    """Return the column that is likely meant by each name, where there is one."""
    free, found = list(columns), {}
    for name in names:
        column = name if name in free else _likely(free, name)
        if column is not None:
            found[name] = column
            free.remove(column)
    return found


def _likely(columns: list[str], name: str) -> str | None:
    lower = {column.lower(): column for column in columns}
    for meant in (name, *SYNONYMS[name]):
        close = get_close_matches(meant, lower, 1, 0.8) or [column for column in lower if column.startswith(meant)]
        if close:
            return lower[close[0]]
    return None
