"""Rows of objects in memory, and a source of whatever a user gives."""

import marshal
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pyarrow
import torch
from datasets.fingerprint import Hasher

from lit_tr.data.example import Format, Row
from lit_tr.data.formats.conversion import Chat, Conversion
from lit_tr.data.rows.find import is_hub_id
from lit_tr.data.rows.path import Rows
from lit_tr.data.rows.source import Cursor, Record, Replay, Source, hash_of
from lit_tr.errors import UserError

BATCH = 1024
"""Rows that are taken out of an object at a time."""


def as_source(data: Any, split: str = "train") -> Source:
    """Return a source of what a user gives: a source, a path, or an object with rows.

    Args:
        data: a source stays; `str` and `Path` become `Rows`, anything else `Objects`.
        split: which one of a folder, a hub id or a dict of splits.

    Raises:
        UserError: there can be no rows in it.
    """
    if isinstance(data, Source):
        return data
    if isinstance(data, str | os.PathLike):
        path = os.path.expanduser(data)
        has_splits = os.path.isdir(path) or is_hub_id(path)
        return Rows(str(data), split if has_splits else "train")
    return Objects(data, split if isinstance(data, Mapping) else "train")


@dataclass(eq=False, repr=False)
class Objects(Source):
    """Rows of an object in memory.

    What has a length and is indexed gives a row at any number: a list of dicts, a `datasets.Dataset`, a map-style set
    of torch; an `order` brings its rows in a random order. A frame of pandas, polars or pyarrow becomes an Arrow table.
    What is iterated over begins anew for each cursor; only an `IterableDataset` of `datasets` without a shuffle buffer
    goes on from its own state, all else reads again what came before.

    Args:
        data: the rows; a dict of splits, such as a `DatasetDict`; or a function without arguments that returns an
            iterator over them.
        split: which one of a dict of splits.
        format: function from a row to an `Example` or a list of them; None detects one of `lit_tr.data.formats`.
        columns: the name that a column has in the rows, for each name that the format knows.
        chat: make chat messages of text; `auto` does where the tokenizer has a chat template.

    Raises:
        UserError: there can be no rows in the object, or no such split.
    """

    data: Any
    split: str = "train"
    format: Format | None = None
    columns: Mapping[str, str] | None = None
    chat: Chat = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.data, Mapping):
            self.data = _of_split(self.data, self.split)
        elif self.split != "train":
            raise UserError(f"{type(self.data).__name__}: there are no splits in it, so no split {self.split!r}")
        self._name = type(self.data).__name__
        if hasattr(self.data, "__arrow_c_stream__"):
            self.data = _Frame(self.data)
        _check(self.data, self.format)

    def __str__(self) -> str:
        """Return what kind of object it is."""
        return f"{self._name} in memory"

    @property
    def conversion(self) -> Conversion:  # type: ignore[override]
        """How its rows become examples."""
        return Conversion(self.format, self.columns, self.chat)

    def records(self, order: int | None = None, state: Any = None) -> Cursor:
        """Return a cursor; an order is that of rows that are indexed, and of the shards of an `IterableDataset`."""
        if _is_indexed(self.data):
            return _IndexCursor(self, order, state)
        if not hasattr(self.data, "_ex_iterable"):
            return Replay(self._located(self._iterate()), state or 0, self.conversion)
        data = deepcopy(self.data)  # since a state is one of the object
        data.set_epoch(data.epoch if order is None else order)
        if not _resumes(data._ex_iterable):
            return Replay(self._located(_one_by_one(data)), state or 0, self.conversion)
        return _StreamCursor(self, data, state)

    def fingerprint(self) -> str | None:
        """Return a hash of rows and conversion; None of what is iterated over."""
        known = getattr(self.data, "_fingerprint", None) if _is_indexed(self.data) else None
        if known is None and isinstance(self.data, Sequence):
            known = _hash_of_rows(self.data)
        return None if known is None else hash_of(self.conversion, "Objects", known)

    def _iterate(self) -> Iterator[Row]:
        try:
            return iter(self.data() if callable(self.data) else self.data)
        except TypeError as error:
            raise UserError(f"{self}: the function must take no argument and return an iterator: {error}") from error

    def _located(self, rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
        return ((f"{self}, row {number}", row) for number, row in enumerate(rows))


class _Frame:
    """Rows of a frame of any library, by Arrow's interface."""

    def __init__(self, frame: Any) -> None:
        try:
            table = pyarrow.table(frame)
        except (pyarrow.ArrowException, TypeError) as error:
            raise UserError(
                f"{type(frame).__name__} in memory: a column has values of several kinds ({error}); give its rows as a "
                "list of dicts"
            ) from error
        self.table = table.select([name for name in table.column_names if not name.startswith("__index_level_")])

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, number: int) -> Row:
        return self.table.slice(number, 1).to_pylist()[0]

    def __getitems__(self, numbers: Sequence[int]) -> list[Row]:
        if isinstance(numbers, range):
            return self.table.slice(numbers.start, len(numbers)).to_pylist()
        return [self[number] for number in numbers]

    @property
    def _fingerprint(self) -> str:
        return Hasher.hash(self.table)


class _IndexCursor(Cursor):
    """Takes rows by their numbers; its state is how many came before."""

    def __init__(self, source: Objects, order: int | None, state: int | None) -> None:
        self._source, self._conversion, self._at = source, source.conversion, state or 0
        count = len(source.data)
        self._numbers: Sequence[int] = range(count)
        if order is not None:
            self._numbers = torch.randperm(count, generator=torch.Generator().manual_seed(order)).tolist()
        self._first = 0
        self._held: list[Row] = []

    def __next__(self) -> Record:
        if self._at >= len(self._numbers):
            raise StopIteration
        if not self._first <= self._at < self._first + len(self._held):
            self._first, self._held = self._at, _rows(self._source.data, self._numbers[self._at : self._at + BATCH])
        row, number = self._held[self._at - self._first], self._numbers[self._at]
        self._at += 1
        return Record(f"{self._source}, row {number}", row, self._conversion)

    def skip(self, count: int) -> int:
        passed = min(count, len(self._numbers) - self._at)
        self._at += passed
        return passed

    def state(self) -> int:
        return self._at


class _StreamCursor(Cursor):
    """Goes through an `IterableDataset`; its state is that of the data and the number of rows that came before."""

    def __init__(self, source: Objects, data: Any, state: list[Any] | None) -> None:
        self._source, self._data, self._conversion = source, data, source.conversion
        self._count: int = state[0] if state else 0
        self._state: Any = state[1] if state else None
        if self._state is not None:
            data.load_state_dict(self._state)
        self._rows = _one_by_one(data)

    def __next__(self) -> Record:
        row = next(self._rows)
        self._state = None
        self._count += 1
        return Record(f"{self._source}, row {self._count - 1}", row, self._conversion)

    def skip(self, count: int) -> int:
        return next((passed for passed in range(count) if next(self, None) is None), count)

    def state(self) -> list[Any]:
        return [self._count, self._state or (self._data.state_dict() if self._count else None)]


def _of_split(splits: Mapping[str, Any], split: str) -> Any:
    if split not in splits:
        raise UserError(
            f"there is no split {split!r} in the {type(splits).__name__}: its keys are {list(splits)}; "
            "give Objects(data, split=...), or a dict of columns as Dataset.from_dict(...)"
        )
    return splits[split]


def _is_indexed(data: Any) -> bool:
    return hasattr(data, "__len__") and hasattr(data, "__getitem__")


def _check(data: Any, format: Format | None) -> None:
    """Check that there can be rows in an object.

    Raises:
        UserError: there cannot.
    """
    name = type(data).__name__
    if _is_indexed(data):
        if format is None and len(data) and not isinstance(data[0], Mapping):
            raise UserError(f"{name} of {type(data[0]).__name__}: without a format each row must be a dict of columns")
    elif not callable(data):
        if not hasattr(data, "__iter__"):
            raise UserError(f"{name}: no rows; give a path, a list of dicts, a data set, a frame, or a function")
        if hasattr(data, "__next__"):
            raise UserError(f"{name}: can be read only once; give the function that makes it, without calling it")


def _rows(data: Any, numbers: Sequence[int]) -> list[Row]:
    many: Callable[[Sequence[int]], list[Row]] | None = getattr(data, "__getitems__", None)
    return many(numbers) if many else [data[number] for number in numbers]


def _one_by_one(data: Any) -> Iterator[Row]:
    """Yield all rows of an `IterableDataset`, in a worker too: iterated over there, it would leave out some."""
    for batch in data.iter(batch_size=1):
        yield {name: values[0] for name, values in batch.items()}


def _resumes(examples: Any) -> bool:
    """Return whether a stream of `datasets` goes on exactly from its state: what a shuffle buffer held is lost."""
    inner = [examples.ex_iterable] if hasattr(examples, "ex_iterable") else getattr(examples, "ex_iterables", [])
    return not hasattr(examples, "buffer_size") and all(map(_resumes, inner))


def _hash_of_rows(rows: Iterable[Row]) -> str | None:
    """Return a hash of rows by value: what objects they share, as a pickle would note, does not matter."""
    try:
        return Hasher.hash_bytes(map(_bytes, rows))
    except Exception:  # whatever pickling an object of the user's may raise
        return None


def _bytes(row: Row) -> bytes:
    try:
        return marshal.dumps(row, 2)  # type: ignore[arg-type]
    except ValueError:  # other than plain values
        return Hasher.hash(row).encode()
