"""Rows of files and of data sets on the hub."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import torch
from datasets.exceptions import DatasetNotFoundError
from fsspec.core import url_to_fs

from lit_tr.data.example import Format, Row
from lit_tr.data.formats.conversion import Chat, Conversion
from lit_tr.data.rows.files import File, open_file
from lit_tr.data.rows.source import Cursor, Record, Source
from lit_tr.errors import BadRowError, UserError

SPLIT = re.compile(r"(?P<name>[\w.-]+)(\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


class Part(NamedTuple):
    """A file, from one row to another."""

    url: str
    first: int
    last: int | None


@dataclass(frozen=True)
class Rows(Source):
    """Rows of files (JSON lines, JSON, CSV, Parquet, Arrow; compressed too) or of a data set on the Hugging Face hub.

    Args:
        path: a file, a folder or a pattern such as `shards/*.parquet`, each also as a URL of fsspec (`s3://...`); or a
            hub id such as `Anthropic/hh-rlhf`. The splits of folders and hub ids are those that `datasets` finds.
        split: which rows, in the notation of `datasets`: `train`, `test`, `train[200:]`, `train[:10%]`. A file is all
            `train`.
        revision: a commit, tag or branch of the hub's data set.
        name: configuration of a hub id that has several.
        share: take the rows whose hash, a number in [0, 1), lies from the first number up to the second. What a row
            says decides, not where it stands: with `[0.02, 1]` for training and `[0, 0.02]` for validation, no row is
            in both, however often it occurs.
        share_by: the column whose value is hashed, `prompt` say, so that all rows of a prompt are on one side; None
            hashes the row.
        share_seed: seed of the hash.
        format: function from a row to an `Example` or a list of them, by import path, or `class_path` with `init_args`;
            None detects one of `lit_tr.data.formats` for each row.
        columns: the name that a column has in the rows, for each name that the format knows, such as
            `{prompt: question, chosen: response_j}`.
        chat: make chat messages of text; `auto` does where the tokenizer has a chat template.
    """

    path: str
    split: str = "train"
    revision: str | None = None
    name: str | None = None
    share: tuple[float, float] = (0.0, 1.0)
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
        """Return a cursor; the order is that of the files."""
        parts = self.parts()
        if order is not None:
            draw = torch.Generator().manual_seed(order)
            parts = [parts[i] for i in torch.randperm(len(parts), generator=draw).tolist()]
        return _FileCursor(self, parts, state or {"part": 0, "row": 0, "place": None})

    def parts(self) -> list[Part]:
        """Return the files, in their own order, and which rows of them belong to the split.

        Raises:
            UserError: there is no such data.
        """
        found = SPLIT.fullmatch(self.split)
        assert found
        urls = self._urls(found["name"])
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

    def takes(self, row: Row) -> bool:
        """Return whether a row is of the share."""
        if self.share == (0.0, 1.0):
            return True
        value = row if self.share_by is None else row.get(self.share_by)
        text = json.dumps([self.share_seed, value], sort_keys=True, default=str).encode()
        return self.share[0] <= int.from_bytes(blake2b(text, digest_size=7).digest()) / 2**56 < self.share[1]

    def _urls(self, split: str) -> list[str]:
        is_folder = Path(self.path).is_dir()
        if not is_folder and ("://" in self.path or Path(self.path).exists() or any(c in self.path for c in "*?[")):
            if split != "train":
                raise UserError(f"{self.path}: there is no split {split!r}: a file is all train")
            return _found(self.path)
        try:
            builder = datasets.load_dataset_builder(self.path, self.name, revision=self.revision)
        except (DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
            raise UserError(f"{self.path}: no such file, and no such data set on the hub can be reached") from error
        except ValueError as error:  # an unknown revision or configuration
            raise UserError(f"{self.path}: {error}") from error
        files = builder.config.data_files or {}
        if split not in files:
            raise UserError(f"{self.path}: there is no split {split!r}; known are {', '.join(sorted(map(str, files)))}")
        return [str(url) for url in files[split]]


class _FileCursor(Cursor):
    """Reads files, one after the other."""

    def __init__(self, source: Rows, parts: list[Part], state: dict[str, Any]) -> None:
        self._source, self._parts = source, parts
        self._at, self._row, self._place = state["part"], state["row"], state["place"]
        self._file: File | None = None

    def __next__(self) -> Record:
        while True:
            part, file = self._open()
            where = f"{part.url}, row {self._row}"
            try:
                if part.last is not None and self._row >= part.last:
                    raise StopIteration
                row = next(file)
            except StopIteration:
                self._leave()
            except BadRowError as error:
                self._row += 1
                return Record(where, error, self._source.conversion)
            else:
                self._row += 1
                return Record(where, row if row is None or self._source.takes(row) else None, self._source.conversion)

    def skip(self, places: int) -> int:
        left = places
        while left and self._at < len(self._parts):
            part, file = self._open()
            room = left if part.last is None else min(left, part.last - self._row)
            passed = file.skip(room)
            self._row += passed
            left -= passed
            if passed < room or self._row == part.last:
                self._leave()
        return places - left

    def state(self) -> dict[str, Any]:
        return {"part": self._at, "row": self._row, "place": self._file.place if self._file else self._place}

    def _open(self) -> tuple[Part, File]:
        if self._at == len(self._parts):
            raise StopIteration
        part = self._parts[self._at]
        if self._file is None:
            self._file = open_file(part.url, self._place or 0)
            if self._place is None:
                self._row = self._file.skip(part.first)
        return part, self._file

    def _leave(self) -> None:
        if self._file:
            self._file.close()
        self._at, self._row, self._place, self._file = self._at + 1, 0, None, None


def _found(path: str) -> list[str]:
    """Return the files of a path or pattern, sorted.

    Raises:
        UserError: there is none, or the place cannot be reached.
    """
    try:
        system, inside = url_to_fs(path)
        if system.isfile(inside):
            return [path]
        found = system.find(inside) if system.isdir(inside) else system.glob(inside)
    except (OSError, ImportError, ValueError) as error:
        raise UserError(f"{path}: cannot be reached: {error}") from error
    if not found:
        raise UserError(f"{path}: there is no such file")
    return [url if "://" not in path else system.unstrip_protocol(url) for url in sorted(found)]


def _count(url: str) -> int:
    file = open_file(url)
    try:
        return file.skip(2**62)
    finally:
        file.close()


def _bound(text: str, rows: int) -> int:
    """Return a bound of a slice as a number of rows."""
    number = round(int(text[:-1]) / 100 * rows) if text.endswith("%") else int(text)
    return number if number >= 0 else max(rows + number, 0)
