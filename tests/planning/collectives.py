"""The benchmark of sent bytes with another count: what the collective calls of one rank send, in place of the loopback.

Other programs may use the loopback meanwhile. usage: as `tests/benchmarks/bytes_sent.py --worker`.
"""

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tests.benchmarks import bytes_sent

OF_RANKS = {"allreduce_": 2, "_allgather_base_": 1, "_reduce_scatter_base_": 1}
"""What each call sends, in shares of (ranks - 1) / ranks of its largest tensor."""


class Collectives(TorchDispatchMode):
    """Sums up what the collective calls of this process send."""

    sent = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d" and (times := OF_RANKS.get(func._opname)):
            sizes = [leaf.nbytes for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            self.sent += times * max(sizes) / 2  # of two ranks
        return func(*args, **(kwargs or {}))


if __name__ == "__main__":
    with Collectives() as collectives:
        bytes_sent.sent = lambda: collectives.sent
        bytes_sent.main()
