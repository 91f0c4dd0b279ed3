"""What fills a pack."""

import heapq
from collections.abc import Sequence

import torch


def fill(sizes: Sequence[int], budget: int, multiple: int = 1, seed: int = 0) -> list[list[int]]:
    """Split items into as few batches as keep within a budget, all of about the same size; return their indices.

    The longest item left goes to the batch that is smallest so far (Graham 1969, longest processing time first).

    Args:
        sizes: size of each item, at most `budget`.
        budget: most that the sizes of a batch may add up to.
        multiple: the number of batches is a multiple of this, as far as there are items.
        seed: decides between items of the same size.
    """
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).tolist()
    order.sort(key=lambda i: -sizes[i])
    count = -(-sum(sizes) // budget)
    while True:
        count = min(-(-count // multiple) * multiple, len(sizes))
        batches: list[list[int]] = [[] for _ in range(count)]
        heap = [(0, number) for number in range(count)]
        for i in order:
            total, number = heap[0]
            batches[number].append(i)
            heapq.heapreplace(heap, (total + sizes[i], number))
        if max(total for total, _ in heap) <= budget:
            return batches
        count += 1
