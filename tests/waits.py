"""Counts on the CPU what would wait for a device: reads of its tensors, and what is made there of numbers in Python.

Copies of tensors are not counted: `to` looks alike on a CPU whether it copies or not.
"""

from collections import Counter

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

READS = {  # what cannot go on before a number is known
    *("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal", "bincount"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive"),
}
MASKED = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""These are made of `nonzero` where an index is a mask."""
COPIES = {"tolist", "cpu", "numpy", "__array__"}
FROM_PYTHON = {"tensor", "as_tensor", "asarray"}


class Waits(TorchDispatchMode):
    """Tensors that are said to be on a device, and all that is computed of them, are watched in a `with` block.

    A CPU has no other memory: which tensors a GPU would hold is known by their storages.

    Attributes:
        found: how many times each call has waited.
    """

    def __init__(self):
        super().__init__()
        self.found = Counter()
        self._storages = set()
        self._calls = _Calls(self)

    def __enter__(self):
        self._calls.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._calls.__exit__(*error)

    def put(self, *tensors):
        """Say that tensors are on the device."""
        self._storages |= {StorageWeakRef(one.untyped_storage()) for one in tensors}

    def holds(self, *values):
        """Whether a tensor among some values is on the device."""
        tensors = (one for one in tree_leaves(values) if isinstance(one, torch.Tensor))
        return any(StorageWeakRef(one.untyped_storage()) in self._storages for one in tensors)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if self._storages and self.holds(args, kwargs):
            name = func.overloadpacket.__name__
            of_mask = name in MASKED and any(one is not None and one.dtype == torch.bool for one in args[1])
            unsized = func is torch.ops.aten.repeat_interleave.Tensor and (kwargs or {}).get("output_size") is None
            self.found[name] += name in READS or of_mask or unsized
            changed = [args[0]] if func._schema.is_mutable and args else []
            self.put(*(one for one in tree_leaves((result, changed)) if isinstance(one, torch.Tensor)))
        return result


class _Calls(TorchFunctionMode):
    """Sees the calls that no dispatcher sees on a CPU."""

    def __init__(self, waits):
        super().__init__()
        self._waits = waits

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        reads = name in COPIES and self._waits.holds(args)
        sends = name in FROM_PYTHON and kwargs.get("device") is not None or name == "new_tensor"
        self._waits.found[name] += reads or sends
        return func(*args, **kwargs)
