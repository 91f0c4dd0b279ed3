"""Which format the rows have, by their columns."""

from collections.abc import Mapping
from functools import lru_cache

from lit_tr.data.example import Format, Row
from lit_tr.data.formats.hints import hint
from lit_tr.data.formats.table import FORMATS, KnownFormat
from lit_tr.errors import BadRowError


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
    reason, detail = found
    raise BadRowError(reason, detail)


def detect(row: Row) -> Format:
    """Return the format of a row by its columns.

    Raises:
        BadRowError: the row has the columns of no format, or lacks a value.

    Examples:
        >>> detect({"question": "1 + 1?", "response_j": "2", "response_k": "3"}).__name__
        'stack_exchange'
    """
    return known(row).format


@lru_cache(maxsize=1024)
def _found(columns: frozenset[str], null: frozenset[str]) -> KnownFormat | tuple[str, str]:
    """Return the format of rows with these columns, or why there is none, and more of it."""
    fitting = [one for one in FORMATS if columns.issuperset(one.columns) and columns.isdisjoint(one.without)]
    for one in fitting:
        if null.isdisjoint(one.columns):
            return one
    if fitting:
        return f"no {next(column for column in fitting[0].columns if column in null)!r}", ""
    return "unknown format", hint(sorted(map(str, columns)))
