"""Rows -> token ids, once: an Arrow file that is memory-mapped, shared by the ranks of a node and found again."""

import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import Any, Self, overload

import datasets
import numpy as np
from datasets.arrow_writer import ArrowWriter
from filelock import FileLock
from numpy.typing import NDArray
from torch.utils.data import Dataset

from lit_tr.console.counted import SILENT, CountedProgress
from lit_tr.data.bad_rows import BadRow, BadRows
from lit_tr.data.build import SCHEMA, blocks
from lit_tr.data.collator import Collator
from lit_tr.data.packing import too_large
from lit_tr.data.process import RowProcessor
from lit_tr.data.rows import Source
from lit_tr.data.tokenization import Ahead, TokenizedExample
from lit_tr.errors import UserError


@cache
def _code() -> str:
    """Return a hash of what makes token ids of rows: a cache of another version is not found."""
    return blake2b(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.rglob("*.py")))).hexdigest()


class TokenCache(Dataset[TokenizedExample]):
    """Tokenized examples in a memory-mapped Arrow file.

    Args:
        data: the examples, columns as in `lit_tr.data.build.SCHEMA`.
        bad_rows: the rows that were left out.
        unread: columns that no format read.
        made_chat: rows whose text became chat messages.
    """

    def __init__(
        self, data: datasets.Dataset, bad_rows: BadRows, unread: Sequence[str] = (), made_chat: int = 0
    ) -> None:
        self._data, self._rows = data, data.with_format("arrow")
        self.bad_rows, self.unread, self.made_chat = bad_rows, tuple(unread), made_chat
        self._ahead: list[Ahead] | None = None

    def __len__(self) -> int:
        """Number of examples."""
        return len(self._data)

    @overload
    def __getitem__(self, index: int) -> TokenizedExample: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenizedExample]: ...
    def __getitem__(self, index: int | slice) -> TokenizedExample | list[TokenizedExample]:
        """Return an example, or some."""
        if isinstance(index, slice):
            return self.__getitems__(range(len(self))[index])
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[TokenizedExample]:
        """Return some examples, all of a batch at a time."""
        if not len(indices):
            return []
        table = self._rows[[int(index) for index in indices]]
        ids = table["ids"].combine_chunks().flatten().to_numpy()
        rows = table.drop_columns(["ids"]).to_pylist()
        ends = list(accumulate(row["prompt"] + _tokens(row) for row in rows))
        examples = [_example(row, ids[start:end]) for row, start, end in zip(rows, [0, *ends], ends, strict=False)]
        if self._ahead is None:
            return examples
        return [replace(one, ahead=self._ahead[i]) for one, i in zip(examples, indices, strict=True)]

    def column(self, name: str) -> NDArray[Any]:
        """Return a column of numbers, `(examples,)`."""
        return self._data.with_format("numpy", columns=[name])[:][name]

    def location(self, index: int) -> str:
        """Return the file and the row that an example is from."""
        return self._data[int(index)]["location"]

    def sizes(self, collator: Collator) -> NDArray[np.int64]:
        """Return the most tokens that each example takes in a pack, `(examples,)`."""
        responses = self.column("chosen").clip(0) + self.column("rejected").clip(0)
        lent = responses if self._ahead is None else np.roll(responses, 1)  # precomputed KL rows are those of the set
        return collator.sizes(self.column("prompt"), responses, lent)

    def too_large(self, collator: Collator, max_tokens: int) -> list[BadRow]:
        """Return the rows of the examples that take more tokens than a pack may have."""
        sizes = self.sizes(collator)
        return [
            BadRow.of(self.location(index), too_large(int(sizes[index]), max_tokens))
            for index in np.flatnonzero(sizes > max_tokens).tolist()
        ]

    def select(self, indices: NDArray[np.int64]) -> Self:
        """Return some of the examples."""
        return type(self)(self._data.select(indices), self.bad_rows, self.unread, self.made_chat)

    def attach(self, ahead: list[Ahead]) -> None:
        """Hold precomputed reference log-probs, one of each example."""
        self._ahead = ahead


def _tokens(row: dict[str, Any]) -> int:
    return max(row["chosen"], 0) + max(row["rejected"], 0)


def _example(row: dict[str, Any], ids: NDArray[np.int32]) -> TokenizedExample:
    lengths = [row["prompt"], max(row["chosen"], 0), max(row["rejected"], 0)]
    prompt, chosen, rejected = (part.tolist() for part in np.split(ids, np.cumsum(lengths)[:2]))
    scored: list[Any] = [None, None]
    if row["scored"] is not None:
        scored = [row["scored"][: lengths[1]], row["scored"][lengths[1] :]]
    return TokenizedExample(
        prompt,
        chosen if row["chosen"] >= 0 else None,
        rejected if row["rejected"] >= 0 else None,
        row["margin"],
        row["confidence"],
        scored[0] if row["chosen"] >= 0 else None,
        scored[1] if row["rejected"] >= 0 else None,
        {name: tuple(values) for name, values in json.loads(row["labels"] or "{}").items()},
        row["truncated"],
        tuple(row["responses_truncated"]),
        subset=row["subset"],
    )


@dataclass(frozen=True)
class CacheBuilder:
    """Finds the token cache of a source, or makes it.

    Args:
        processor: makes tokenized examples of records.
        folder: where cache files are; None is `lit_tr` in the cache of `datasets`.
        max_bad_rows: how many rows may be left out, as for `BadRows`.
        processes: how many tokenize; None takes one for each core.
    """

    processor: RowProcessor
    folder: Path | None = None
    max_bad_rows: float = 0.01
    processes: int | None = None

    def __call__(self, source: Source, name: str) -> TokenCache:
        """Return the cache of a source; of several ranks of a node one makes it, and the others wait.

        Args:
            source: where the rows come from.
            name: `train`, `val` or `test`, for messages.

        Raises:
            UserError: a source, a row or the tokenizer is not as it should be; the folder cannot be written.
        """
        rows = source.fingerprint()
        if rows is None:  # nobody could find it again
            with tempfile.TemporaryDirectory(prefix="lit_tr-") as folder:
                return self._made(source, name, Path(folder) / "tokens.arrow")
        home = self.folder or Path(datasets.config.HF_DATASETS_CACHE) / "lit_tr"
        path = home / f"{_hash(_code(), rows, self._processor_key())}.arrow"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(path.with_suffix(".lock")):
                return self._found(path) or self._made(source, name, path)
        except OSError as error:
            raise UserError(
                f"data.cache_dir: {path.parent} cannot be written ({error.strerror or error}): name another folder"
            ) from error

    def _found(self, path: Path) -> TokenCache | None:
        """Return the cache in a file; None where there is none, or it is not all there."""
        try:
            summary = json.loads(path.with_suffix(".json").read_text())
            if path.stat().st_size != summary["bytes"]:
                return None
            data = datasets.Dataset.from_file(str(path))
        except (OSError, ValueError, KeyError):
            return None
        bad_rows = BadRows(self.max_bad_rows)
        bad_rows.add(summary["rows"], [BadRow(*row) for row in summary["bad_rows"]])
        return TokenCache(data, bad_rows, summary["unread"], summary["made_chat"])

    def _made(self, source: Source, name: str, path: Path) -> TokenCache:
        bad_rows = BadRows(self.max_bad_rows)
        unread: set[str] = set()
        made_chat = 0
        partial = path.with_suffix(f".{os.getpid()}.partial")
        features = datasets.Features.from_arrow_schema(SCHEMA)
        progress = CountedProgress(f"data.{name}: tokenizing", math.inf, what="rows", after=SILENT)
        try:
            with progress, ArrowWriter(path=str(partial), features=features) as writer:
                for block in blocks(source, self.processor, self.processes):
                    writer.write_table(block.table)
                    bad_rows.add(block.rows, block.bad, judge=False)
                    unread |= block.unread
                    made_chat += block.made_chat
                    progress.add(block.rows)
                writer.finalize()
            summary: dict[str, Any] = {"bytes": partial.stat().st_size, "rows": bad_rows.rows}
            summary |= {"unread": sorted(unread), "made_chat": made_chat}
            partial.replace(path)
            path.with_suffix(".json").write_text(json.dumps({**summary, "bad_rows": bad_rows.found}))
        finally:
            partial.unlink(missing_ok=True)
        made = self._found(path)
        assert made is not None
        return made

    def _processor_key(self) -> str:
        tokenizer = self.processor.tokenizer
        vocabulary = (
            tokenizer.backend_tokenizer.to_str() if tokenizer.is_fast else sorted(tokenizer.get_vocab().items())
        )
        known = (vocabulary, tokenizer.chat_template, tokenizer.special_tokens_map, type(tokenizer).__name__)
        options = [getattr(self.processor, one.name) for one in fields(self.processor) if one.name != "tokenizer"]
        return _hash(known, options)


def _hash(*parts: Any) -> str:
    return blake2b(repr(parts).encode(), digest_size=16).hexdigest()
