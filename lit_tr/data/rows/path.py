"""Rows of files and of data sets on the hub."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from datasets.fingerprint import Hasher

from lit_tr.data.example import Format, Row
from lit_tr.data.formats.conversion import Chat, Conversion
from lit_tr.data.rows.files import File
from lit_tr.data.rows.find import splits
from lit_tr.data.rows.opening import open_file, reading, version_of
from lit_tr.data.rows.source import Cursor, Record, Source, hash_of
from lit_tr.errors import BadRowError, UserError

SPLIT = re.compile(r"(?P<name>[\w.-]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")
ALL = (0.0, 1.0)
HEAD = 100
"""Rows in which the column of `share_by` is looked for."""


class Part(NamedTuple):
    """A file, from one row to another."""

    url: str
    first: int
    last: int | None


@dataclass(frozen=True)
class Rows(Source):
    """Rows of files (JSON lines, JSON, CSV, TSV, Parquet, Arrow; compressed too) or of a Hugging Face data set.

    Args:
        path: a file, a folder or a pattern such as `shards/*.parquet`, each also as a URL of fsspec (`s3://...`); or a
            hub id such as `Anthropic/hh-rlhf`. The splits of folders and hub ids are those that `datasets` finds. What
            `save_to_disk` wrote is read too, and without a network what the caches of `datasets` and of the hub hold.
        split: which rows, in the notation of `datasets`: `train`, `test`, `train[200:]`, `train[:10%]`. A file is all
            `train`.
        revision: a commit, tag or branch of the hub's data set.
        name: configuration of a hub id that has several.
        share: take the rows whose hash, a number in [0, 1), lies from the first number up to the second. What a row
            says decides, not where it stands: with `[0.02, 1]` for training and `[0, 0.02]` for validation, no row is
            in both, however often it occurs.
        share_by: the column whose value is hashed, `prompt` say, so that all rows of a prompt are on one side; None
            hashes the row. It is named as in the rows.
        share_seed: seed of the hash.
        format: function from a row to an `Example` or a list of them, by import path, or `class_path` with `init_args`;
            None detects one of `lit_tr.data.formats` for each row.
        columns: the name that a column has in the rows, for each name that the format knows, such as
            `{prompt: question, chosen: response_j}`.
        chat: make chat messages of text; `auto` does where the tokenizer has a chat template.

    Raises:
        UserError: split or share are not of that form.
    """

    path: str | Path
    split: str = "train"
    revision: str | None = None
    name: str | None = None
    share: tuple[float, float] = ALL
    share_by: str | None = None
    share_seed: int = 0
    format: Format | None = None
    columns: Mapping[str, str] | None = None
    chat: Chat = "auto"

    def __post_init__(self) -> None:
        if not SPLIT.fullmatch(self.split):
            raise UserError(f"{self.path}: split {self.split!r} is not like train, train[200:] or train[:10%]")
        low, high = self.share
        if not 0 <= low < high <= 1:
            raise UserError(f"{self.path}: share {self.share} must be two numbers in [0, 1], the first one lower")

    def __str__(self) -> str:
        """Return path and split."""
        return f"{self.path}, split {self.split}"

    @property
    def conversion(self) -> Conversion:  # type: ignore[override]
        """How its rows become examples."""
        return Conversion(self.format, self.columns, self.chat)

    def records(self, order: int | None = None, state: Any = None) -> Cursor:
        """Return a cursor; the order is that of the files.

        Raises:
            UserError: there is no such data, no column `share_by` in it, or it has not the files of the state.
        """
        parts = self.parts()
        self._check_column(parts)
        if order is not None:
            draw = torch.Generator().manual_seed(order)
            parts = [parts[i] for i in torch.randperm(len(parts), generator=draw).tolist()]
        return _FileCursor(self, parts, state)

    def fingerprint(self) -> str | None:
        """Return a hash of files, split, share and conversion; files are known by size, times and checksums.

        Raises:
            UserError: there is no such data.
        """
        versions = [(url, version_of(url)) for url in self.urls()]
        if any(version is None for _, version in versions):
            return None
        share = None if self.share == ALL else (self.share, self.share_by, self.share_seed)
        return hash_of(self.conversion, "Rows", versions, self.split, share)

    def urls(self) -> list[str]:
        """Return the files of the split.

        Raises:
            UserError: there is no such data.
        """
        known, split = splits(os.path.expanduser(self.path), self.name, self.revision), self.split.partition("[")[0]
        if split not in known:
            raise UserError(f"{self.path}: there is no split {split!r}; known are {', '.join(sorted(known))}")
        return known[split]

    def parts(self) -> list[Part]:
        """Return the files, in their own order, and which rows of them belong to the split.

        Raises:
            UserError: there is no such data.
        """
        found = SPLIT.fullmatch(self.split)
        assert found
        urls = self.urls()
        if not found["start"] and not found["stop"]:
            return [Part(url, 0, None) for url in urls]
        counts = [_count(url) for url in urls]
        start, stop = _bound(found["start"] or "0", sum(counts)), _bound(found["stop"] or "100%", sum(counts))
        parts = []
        for url, rows in zip(urls, counts, strict=True):
            first, last = max(start, 0), min(stop, rows)
            if first < last:
                parts.append(Part(url, first, last))
            start, stop = start - rows, stop - rows
        return parts

    def shared(self, row: Row) -> Row | BadRowError | None:
        """Return a row of the share, nothing for another row."""
        if self.share == ALL:
            return row
        if self.share_by is not None and self.share_by not in row:
            return BadRowError(f"no {self.share_by!r}, which share_by names")
        value = row if self.share_by is None else row[self.share_by]
        text = json.dumps([self.share_seed, value], sort_keys=True, default=str).encode()
        low, high = self.share
        return row if low <= int.from_bytes(blake2b(text, digest_size=7).digest()) / 2**56 < high else None

    def _check_column(self, parts: list[Part]) -> None:
        if self.share_by is None:
            return
        head = [record.row for record in islice(_FileCursor(Rows(self.path), parts), HEAD)]
        rows = [row for row in head if isinstance(row, Mapping)]
        if rows and not any(self.share_by in row for row in rows):
            raise UserError(f"{self.path}: share_by: there is no column {self.share_by!r}; known are {sorted(rows[0])}")


class _FileCursor(Cursor):
    """Reads files, one after the other."""

    def __init__(self, source: Rows, parts: list[Part], state: dict[str, Any] | None = None) -> None:
        self._source, self._parts, self._conversion = source, parts, source.conversion
        self._files = Hasher.hash([(PurePosixPath(part.url).name, part.first, part.last) for part in parts])
        state = state or {"files": self._files, "part": 0, "row": 0, "state": None}
        if state["files"] != self._files:
            raise UserError(f"{source}: cannot go on where training stopped: it has other files than then")
        self._at, self._row, self._state = state["part"], state["row"], state["state"]
        self._file: File | None = None

    def __next__(self) -> Record:
        while True:
            part, file = self._open()
            location, row = f"{part.url}, row {self._row}", None
            try:
                if part.last is not None and self._row >= part.last:
                    raise StopIteration
                with reading(location):
                    row = next(file)
                found = row if row is None else self._source.shared(row)
            except StopIteration:
                self._leave()
                continue
            except BadRowError as error:
                found = error
            self._row += 1
            return Record(location, found, self._conversion)

    def skip(self, count: int) -> int:
        left = count
        while left and self._at < len(self._parts):
            part, file = self._open()
            room = left if part.last is None else min(left, part.last - self._row)
            with reading(f"{part.url}, after row {self._row}"):
                passed = file.skip(room)
            self._row += passed
            left -= passed
            if passed < room or self._row == part.last:
                self._leave()
        return count - left

    def state(self) -> dict[str, Any]:
        state = self._file.state if self._file else self._state
        return {"files": self._files, "part": self._at, "row": self._row, "state": state}

    def _open(self) -> tuple[Part, File]:
        if self._at == len(self._parts):
            raise StopIteration
        part = self._parts[self._at]
        if self._file is None:
            self._file = open_file(part.url, self._state or 0)
            if self._state is None:
                with reading(part.url):
                    self._row = self._file.skip(part.first)
        return part, self._file

    def _leave(self) -> None:
        if self._file:
            self._file.close()
        self._at, self._row, self._state, self._file = self._at + 1, 0, None, None


def _count(url: str) -> int:
    file = open_file(url)
    try:
        with reading(url):
            return file.skip(2**62)
    finally:
        file.close()


def _bound(text: str, rows: int) -> int:
    """Return a bound of a slice as a number of rows."""
    number = round(int(text[:-1]) / 100 * rows) if text.endswith("%") else int(text)
    return number if number >= 0 else max(rows + number, 0)
