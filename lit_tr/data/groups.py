"""The groups of a pack, and who sees whom in it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from lit_tr.data.transfer import ByValue, moved

BLOCK = 128
"""Tokens on each side of a block of FlexAttention, which computes a block of scores or leaves it out."""


@dataclass
class Packing(ByValue):
    """The groups of a pack, and which tokens see which.

    A group is `[prompt | response | response ...]`: each token sees the prompt and its own response, up to itself.

    Args:
        offsets: start and end of each group.
        segment_ids: 0 at the tokens of prompts, 1, 2, ... at those of a group's responses, `(tokens,)`.
        positions: position of each token, counted from the start of its prompt, `(tokens,)`; a response goes on after
            its prompt.
        spans: start and end of each segment, and start and end of the prompt before it, which is empty for a prompt;
            None reads them from the segment ids.
    """

    offsets: list[tuple[int, int]]
    segment_ids: Tensor
    positions: Tensor
    spans: list[tuple[int, int, int, int]] | None = field(default=None, repr=False)
    _masks: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.spans is None:
            self.spans = _spans(self.offsets, self.segment_ids.numpy())

    def limits(self, window: int | None = None) -> NDArray[np.int32]:
        """Return what each token sees, `(3, tokens)`, as indices of tokens.

        Token q sees token k if `limits[0, q] <= k < limits[1, q]`, which are in its prompt, or if
        `limits[2, q] <= k <= q`, which are in its own segment.

        Args:
            window: tokens this many positions back, or more, are not seen.
        """
        spans = np.array(self.spans)
        start, end, first, stop = np.repeat(spans, spans[:, 1] - spans[:, 0], axis=0).T
        if window is not None:
            back = np.arange(len(start)) - window + 1
            start, first = np.maximum(start, back), np.clip(stop + back - start, first, stop)
        return np.stack([first, stop, start]).astype(np.int32)

    def blocks(self, window: int | None = None) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which blocks of scores are computed with a mask, and which without, each `(blocks, blocks)`.

        Rows are blocks of queries, columns of keys. In a block without a mask each query sees each key. The queries of
        one block in one segment see two spans of keys, so this takes no matrix of tokens.
        """
        first, stop, own = self.limits(window)
        tokens, size = len(own), -(-len(own) // BLOCK)
        begin = np.union1d(np.arange(0, tokens, BLOCK), [start for start, *_ in self.spans or []])
        last = np.append(begin[1:], tokens) - 1
        rows, joined = begin // BLOCK, own[last] == stop[last]  # the prompt ends where the segment begins
        low, high = np.stack([first[begin], own[begin]]), np.stack([stop[begin], last + 1])
        seen = _counts(rows, low // BLOCK, np.where(low < high, -(-high // BLOCK), 0), size) > 0
        low = np.stack([first[last], np.where(joined, begin + 1, own[last])])
        high = np.stack([np.where(joined, begin + 1, stop[last]), begin + 1])
        full = _counts(rows, -(-low // BLOCK), high // BLOCK, size) == np.bincount(rows)[:, None]
        full[tokens // BLOCK :] = False  # a block that the pack's end cuts
        return seen & ~full, full

    def mask(self, group: int, dtype: torch.dtype, window: int | None = None, copies: int = 1) -> Tensor:
        """Return what is added to the scores of a group: 0 where a token is seen, `(1, 1, copies * tokens, tokens)`.

        All layers share it. From a boolean mask each would make one like this, and keep it for the backward pass.

        Args:
            group: number of the group.
            dtype: that of the scores.
            window: tokens this many positions back, or more, are not seen.
            copies: how many times the mask is repeated, along the queries.
        """
        key = (group, dtype, window, copies)
        if key not in self._masks:
            at = torch.arange(*self.offsets[group], device=self.segment_ids.device)
            first, stop, own = self._limits(window)
            hidden = ~_sees(first, stop, own, at[:, None], at[None])
            added = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            added = added.masked_fill_(hidden, torch.finfo(dtype).min)
            self._masks[key] = added.repeat(copies, 1)[None, None]
        return self._masks[key]

    def block_mask(self, window: int | None = None) -> BlockMask:
        """Return who sees whom in the pack, for FlexAttention; with a window as for `mask`.

        It is made on the CPU and copied to the device: nothing waits for the device. FlexAttention's own
        `create_block_mask` would make a matrix of all pairs of tokens first: 17 GB at 131,000 tokens.
        """
        if window not in self._masks:
            first, stop, own = self._limits(window)

            def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return _sees(first, stop, own, query, key)

            ordered = (array for dense in self.blocks(window) for array in _ordered(dense))
            counts, columns, full_counts, full_columns = self._moved(ordered)
            self._masks[window] = BlockMask.from_kv_blocks(
                *(counts, columns, full_counts, full_columns),
                BLOCK_SIZE=BLOCK,
                mask_mod=seen,
                seq_lengths=(len(self.segment_ids),) * 2,
            )
        return self._masks[window]

    def _limits(self, window: int | None) -> list[Tensor]:
        if ("limits", window) not in self._masks:
            self._masks["limits", window] = self._moved(self.limits(window))
        return self._masks["limits", window]

    def _moved(self, arrays: Iterable[NDArray[np.int32]]) -> list[Tensor]:
        return moved([torch.from_numpy(array) for array in arrays], self.segment_ids.device)


def _spans(offsets: list[tuple[int, int]], segment_ids: NDArray[Any]) -> list[tuple[int, int, int, int]]:
    spans = []
    for start, end in offsets:
        cuts = np.flatnonzero(np.diff(segment_ids[start:end])) + start + 1
        edges = [start, *cuts.tolist(), end]
        stop = edges[1] if segment_ids[start] == 0 else start
        for begin, after in zip(edges[:-1], edges[1:], strict=True):
            spans.append((begin, after, start, start if begin < stop else stop))
    return spans


def _sees(first: Tensor, stop: Tensor, own: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """Return whether tokens see others, by their indices and by `limits`."""
    return ((first[query] <= key) & (key < stop[query])) | ((own[query] <= key) & (key <= query))


def _counts(rows: NDArray[Any], low: NDArray[Any], high: NDArray[Any], size: int) -> NDArray[Any]:
    """Return in how many spans `low <= column < high` of its row each cell of a matrix lies, `(size, size)`."""
    steps = np.zeros((size, size + 1), dtype=np.int32)
    rows, some = np.broadcast_to(rows, low.shape), low < high
    np.add.at(steps, (rows[some], low[some]), 1)
    np.add.at(steps, (rows[some], high[some]), -1)
    return steps.cumsum(axis=1)[:, :size]


def _ordered(dense: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return how many cells of each row are true, and the row's columns with these first, for one batch and head."""
    columns = np.argsort(~dense, axis=1, kind="stable")
    return dense.sum(axis=1)[None, None].astype(np.int32), columns[None, None].astype(np.int32)
