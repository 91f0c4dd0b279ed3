"""Which examples make a batch: packs filled by tokens, or so many examples."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from lit_tr.errors import BadRowError


def too_large(tokens: int, max_tokens: int) -> BadRowError:
    """Return what is wrong with an example that goes into no pack."""
    return BadRowError("the example passes max_tokens", f"{tokens} tokens with both responses, max_tokens {max_tokens}")


class Batches(Sequence[NDArray[np.int64]]):
    """The indices of the examples of each batch.

    Args:
        order: indices of all examples, batch after batch, `(examples,)`.
        ends: where each batch ends in it, `(batches,)`.
    """

    def __init__(self, order: ArrayLike, ends: ArrayLike) -> None:
        self.order, self.ends = np.asarray(order, dtype=np.int64), np.asarray(ends, dtype=np.int64)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.ends)

    def __getitem__(self, number: int) -> NDArray[np.int64]:  # type: ignore[override]
        """Return the indices of one batch."""
        return self.order[self.ends[number - 1] if number else 0 : self.ends[number]]


def fill(sizes: ArrayLike, budget: int, seed: int = 0) -> Batches:
    """Fill as few packs as keep within a budget, all to about the same size.

    The longest example left goes to the pack that is emptiest so far (Graham 1969, longest processing time first); the
    number of packs is found by bisection. 61,000 examples take less than 2 s (tests/benchmarks/data_pipeline.py).

    Args:
        sizes: tokens of each example, at most `budget`, `(examples,)`.
        budget: most tokens of a pack; at least those of the longest example.
        seed: decides between examples of the same size.
    """
    tokens = np.asarray(sizes, dtype=np.int64)
    if not len(tokens):
        return Batches([], [])
    shuffled = torch.randperm(len(tokens), generator=torch.Generator().manual_seed(seed)).numpy()
    order = shuffled[np.argsort(-tokens[shuffled], kind="stable")]
    longest_first = tokens[order].tolist()
    budget = max(budget, longest_first[0])
    too_few, enough = -(-int(tokens.sum()) // budget) - 1, 0
    step = 1
    while not enough:
        count = min(too_few + step, len(tokens))
        if _fullest(longest_first, count)[0] <= budget:
            enough = count
        else:
            too_few, step = count, step * 2
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if _fullest(longest_first, middle)[0] <= budget:
            enough = middle
        else:
            too_few = middle
    packs = np.asarray(_fullest(longest_first, enough)[1])
    by_pack = np.argsort(packs, kind="stable")
    return Batches(order[by_pack], np.cumsum(np.bincount(packs, minlength=enough)))


def _fullest(longest_first: list[int], count: int) -> tuple[int, list[int]]:
    """Return the tokens of the fullest of `count` packs, and the pack of each example."""
    heap = [(0, number) for number in range(count)]
    packs = []
    for size in longest_first:
        total, number = heap[0]
        packs.append(number)
        heapq.heapreplace(heap, (total + size, number))
    return max(total for total, _ in heap), packs


@dataclass(frozen=True)
class BatchLayout:
    """How the examples that are held at one time become batches.

    Args:
        batch_size: examples in a batch.
        max_tokens: most packed tokens in a batch, where there is no batch_size.
        by_length: put examples of about the same length into a batch.
    """

    batch_size: int | None = None
    max_tokens: int | None = None
    by_length: bool = False

    def check(self, tokens: int) -> None:
        """Check that an example goes into a batch.

        Raises:
            BadRowError: it has more tokens than a batch may have.
        """
        if self.max_tokens and tokens > self.max_tokens:
            raise too_large(tokens, self.max_tokens)

    def batches(self, sizes: Sequence[int], draw: torch.Generator | None) -> list[list[int]]:
        """Return the indices of the examples of each batch; the last one may be short of batch_size.

        Args:
            sizes: tokens of each example.
            draw: the order is drawn from it; None keeps that of the examples.
        """
        order = list(range(len(sizes))) if draw is None else torch.randperm(len(sizes), generator=draw).tolist()
        if self.max_tokens:
            packs = [[order[i] for i in pack] for pack in fill([sizes[i] for i in order], self.max_tokens)]
            return [packs[i] for i in _mixed(len(packs), draw)]
        if self.by_length:
            order.sort(key=lambda i: sizes[i])
        size = self.batch_size or 1
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        if not self.by_length:
            return batches
        short = [batches.pop()] if len(order) % size else []
        return [batches[i] for i in _mixed(len(batches), draw)] + short


def _mixed(count: int, draw: torch.Generator | None) -> Iterator[int]:
    return iter(range(count) if draw is None else torch.randperm(count, generator=draw).tolist())
