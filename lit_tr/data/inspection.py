"""What is in a token cache: formats, lengths, what a max_length costs, repeats, overlap, padding."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from itertools import islice
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lit_tr.data.cache import TokenCache
from lit_tr.data.example import Row
from lit_tr.data.process import TOO_LONG, RowProcessor
from lit_tr.data.rows import Cursor, Record, Source
from lit_tr.data.tokenization import NO_ROOM, TokenizedExample
from lit_tr.errors import BadRowError

Integers = NDArray[np.int64]

WHOLE = "prompt + longer"
REFUSED = (NO_ROOM, TOO_LONG)
"""Reasons of the rows that another max_length could keep."""
LOOKED_AT = 100
"""Rows whose formats are named."""
AT_A_TIME = 1000
"""Examples whose tokens are compared at a time."""
ODD = 0x9E3779B97F4A7C15
"""Multiplies hashes to mix them; Fibonacci hashing's number for 64 bits."""


class FirstRows(Source):
    """The first records of a source, which may be endless.

    Args:
        source: the source.
        count: how many.
    """

    def __init__(self, source: Source, count: int) -> None:
        self.source, self.count, self.conversion = source, count, source.conversion

    def __str__(self) -> str:
        """Return the source and how many rows of it."""
        return f"{self.source}, the first {self.count:,} rows"

    def records(self, order: int | None = None, state: Any = None) -> Cursor:
        """Return a cursor that ends after so many records."""
        inner, left = state or (None, self.count)
        return _FirstCursor(self.source.records(order, inner), left)


class _FirstCursor(Cursor):
    def __init__(self, cursor: Cursor, left: int) -> None:
        self._cursor, self._left = cursor, left

    def __next__(self) -> Record:
        if not self._left:
            raise StopIteration
        self._left -= 1
        return next(self._cursor)

    def skip(self, count: int) -> int:
        passed = self._cursor.skip(min(count, self._left))
        self._left -= passed
        return passed

    def state(self) -> Any:
        return self._cursor.state(), self._left


def formats(source: Source, processor: RowProcessor) -> Counter[str]:
    """Return the formats of the first good rows of a source, and whether their text becomes chat messages."""
    found: Counter[str] = Counter()
    for record in islice(source.records(), LOOKED_AT):
        if isinstance(record.row, Mapping):
            try:
                found[_format(record, processor)] += 1
            except BadRowError:
                continue
    return found


def _format(record: Record, processor: RowProcessor) -> str:
    conversion, row = record.conversion, cast(Row, record.row)
    format = conversion.format_of(row)
    name = getattr(format, "__name__", type(format).__name__)
    texts = (text for example in conversion(row) for text in (example.prompt, example.chosen, example.rejected))
    if any(isinstance(text, list) for text in texts):
        return f"{name}, chat messages"
    return f"{name}, {'text made chat messages' if processor.makes_chat(conversion) else 'plain text'}"


class Lengths(NamedTuple):
    """Tokens of examples before their prompts were truncated, and of the rows that were refused as too long.

    Args:
        prompt: tokens of each prompt, `(examples,)`.
        chosen: tokens of each chosen response, `(examples,)`; -1 where there is none.
        rejected: the same of the other response.
        refused: tokens of prompt and longer response of each row that was refused, `(rows,)`; -1 where nobody counted.
    """

    prompt: Integers
    chosen: Integers
    rejected: Integers
    refused: Integers

    @classmethod
    def of(cls, cache: TokenCache) -> "Lengths":
        """Return the lengths in a cache."""
        prompt, truncated, chosen, rejected = (
            np.asarray(cache.column(name), dtype=np.int64) for name in ("prompt", "truncated", "chosen", "rejected")
        )
        refused = [-1 if row.tokens is None else row.tokens for row in cache.bad_rows.found if row.reason in REFUSED]
        return cls(prompt + truncated, chosen, rejected, np.asarray(refused, dtype=np.int64))

    @property
    def longer(self) -> Integers:
        """Tokens of the longer response, `(examples,)`."""
        return np.maximum(self.chosen, self.rejected)

    def by_name(self) -> dict[str, Integers]:
        """Return all of them by name, without those that are not there."""
        whole = np.concatenate([self.prompt + self.longer, self.refused])
        named = {"prompt": self.prompt, "chosen": self.chosen, "rejected": self.rejected, WHOLE: whole}
        there = {name: values[values >= 0] for name, values in named.items()}
        return {name: values for name, values in there.items() if len(values)}


class Cost(NamedTuple):
    """What a max_length costs.

    Args:
        max_length: most tokens of a prompt and one response.
        lost: examples, and rows refused already, that are too long.
        truncated: examples whose prompt is truncated.
        tokens: tokens of an epoch, each prompt once with its responses; a row that is refused now and would be kept
            counts with its longer response alone.
    """

    max_length: int
    lost: int
    truncated: int
    tokens: int


def cost(lengths: Lengths, max_length: int, truncate_prompts: bool = True, truncate_responses: bool = False) -> Cost:
    """Return what another max_length would cost, as far as lengths tell.

    A chat, which is truncated by whole messages, may lose a little more. A row that was refused is kept if it fits
    whole, and one whose tokens nobody counted is not.

    Args:
        lengths: lengths of the examples.
        max_length: most tokens of a prompt and one response.
        truncate_prompts: as for `PreferenceDataModule`.
        truncate_responses: as for `PreferenceDataModule`.
    """
    prompt, longer = lengths.prompt, lengths.longer
    if truncate_responses:
        least = max_length // 2 if truncate_prompts else 0
        longer = np.minimum(longer, np.maximum(max_length - prompt, least))
    room = max_length - longer
    over = prompt > room
    lost = (over & ((room < 2) | (not truncate_prompts))) | (np.minimum(prompt, room) >= max_length)
    responses = sum(np.minimum(side, longer).clip(0) for side in (lengths.chosen, lengths.rejected))
    tokens = np.where(lost, 0, np.minimum(prompt, room) + responses)
    kept = (lengths.refused >= 0) & (lengths.refused <= max_length)
    return Cost(
        max_length,
        int(lost.sum() + (~kept).sum()),
        int((over & ~lost).sum()),
        int(tokens.sum() + lengths.refused[kept].sum()),
    )


class Repeats(NamedTuple):
    """Examples that say again, or deny, what an earlier one says.

    Args:
        duplicates: examples with the prompt and the responses of an earlier one, `(duplicates,)`.
        conflicts: examples with those of an earlier one, chosen and rejected exchanged, `(conflicts,)`.
    """

    duplicates: Integers
    conflicts: Integers


def repeats(cache: TokenCache) -> Repeats:
    """Find the examples that repeat an earlier one; only what agrees in prompt and lengths is compared."""
    seen: set[bytes] = set()
    duplicates, conflicts = [], []
    for index, example in _alike(cache):
        prompt, sides = _hash(example.prompt), [_hash(example.chosen), _hash(example.rejected)]
        own, exchanged = prompt + sides[0] + sides[1], prompt + sides[1] + sides[0]
        if own in seen:
            duplicates.append(index)
        if exchanged in seen:
            conflicts.append(index)
        seen.add(own)
    return Repeats(np.asarray(duplicates, dtype=np.int64), np.asarray(conflicts, dtype=np.int64))


def _hash(ids: list[int] | None) -> bytes:
    """Return a hash of token ids, 8 bytes."""
    return blake2b(b"" if ids is None else np.asarray(ids, dtype=np.int64).tobytes(), digest_size=8).digest()


def _alike(cache: TokenCache) -> Iterator[tuple[int, TokenizedExample]]:
    """Yield the examples that share prompt and lengths with another one."""
    prompts, chosen, rejected = (
        np.asarray(cache.column(name), dtype=np.int64) for name in ("prompt_hash", "chosen", "rejected")
    )
    pair = np.minimum(chosen, rejected) * 2**32 + np.maximum(chosen, rejected)
    keys = prompts.view(np.uint64) ^ (pair.view(np.uint64) * np.uint64(ODD))
    _, group, counts = np.unique(keys, return_inverse=True, return_counts=True)
    indices = np.flatnonzero(counts[group] > 1)
    for start in range(0, len(indices), AT_A_TIME):
        some = indices[start : start + AT_A_TIME].tolist()
        yield from zip(some, cache.__getitems__(some), strict=True)


def overlap(cache: TokenCache, other: TokenCache) -> Integers:
    """Return the examples whose prompts are in another cache too, `(shared,)`."""
    return np.flatnonzero(np.isin(cache.column("prompt_hash"), other.column("prompt_hash")))


class BatchTokens(NamedTuple):
    """Tokens of all batches of an epoch, without KTO's KL rows.

    Args:
        packed: in packs, where a prompt stands once for all its responses in the batch.
        padded: with each response after a prompt of its own, filled up to the longest.
    """

    packed: int
    padded: int


def batch_tokens(cache: TokenCache, batches: Sequence[ArrayLike]) -> BatchTokens:
    """Count the tokens of batches, packed and padded.

    Args:
        cache: the examples.
        batches: the indices of the examples of each batch.
    """
    arrays = [np.asarray(batch, dtype=np.int64) for batch in batches]
    order, sizes = np.concatenate(arrays), np.asarray([len(batch) for batch in arrays])
    starts = np.cumsum(sizes) - sizes
    prompt, chosen, rejected, hashes = (
        np.asarray(cache.column(name), dtype=np.int64)[order]
        for name in ("prompt", "chosen", "rejected", "prompt_hash")
    )
    responses = (chosen >= 0).astype(np.int64) + (rejected >= 0)
    longest = np.maximum.reduceat(prompt + np.maximum(chosen, rejected), starts)
    _, first = np.unique(np.stack([np.repeat(np.arange(len(sizes)), sizes), hashes]), axis=1, return_index=True)
    packed = prompt[first].sum() + chosen.clip(0).sum() + rejected.clip(0).sum()
    return BatchTokens(int(packed), int((np.add.reduceat(responses, starts) * longest).sum()))
