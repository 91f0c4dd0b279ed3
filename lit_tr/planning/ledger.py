"""Live bytes and FLOPs of operations, counted on tensors without values."""

import gc
import math
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import lit_tr.policy.quantization  # noqa: F401  bitsandbytes' operations are counted
from lit_tr.planning.attention import backward_flops, forward_flops


def _square_flops(query: Tensor, key: Tensor, value: Tensor, inner: int, outer: int) -> int:
    """Return the FLOPs of products of all queries with all keys: `inner` as wide as keys, `outer` as wide as values."""
    return 2 * math.prod(query.shape[:-1]) * key.shape[-2] * (inner * key.shape[-1] + outer * value.shape[-1])


FLOPS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    # torch counts these from its release 2.14 on
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *args, **kwargs: _square_flops(
        q, k, v, inner=1, outer=1
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda grad, q, k, v, *args, **kwargs: (
        _square_flops(q, k, v, inner=3, outer=2)
    ),
    torch.ops.lit_tr.planned_attention: forward_flops,
    torch.ops.lit_tr.planned_attention_backward: backward_flops,
}
"""FLOPs of an operation, from its arguments and result."""
if hasattr(torch.ops.bitsandbytes, "gemm_4bit"):  # from release 0.50 on; before, weights are made and then multiplied
    FLOPS[torch.ops.bitsandbytes.gemm_4bit] = lambda inputs, *args, out_val, **kwargs: (
        2 * inputs.numel() * out_val.shape[-1]
    )


class Ledger(TorchDispatchMode):
    """Counts the live bytes and the FLOPs of all operations under it.

    Args:
        vocabulary: see `logits`.
        device: type of the device that the meta device stands for: tensors on other devices are not counted, nor
            allocated. None counts all tensors on their own devices.
        reads: the value that `item` or `bool` gives for a number on the meta device.

    Attributes:
        live: bytes of the tensors that were made under it and not freed.
        logits: bytes of `live` in tensors whose last dimension is the vocabulary.
        peaks: of each part of a step the most live bytes, and what of them was `logits` and `gradients`.
        gradients: bytes of the gradients of parameters, counted by the caller.
        flops: floating-point operations of matrix products and attention.
    """

    def __init__(self, vocabulary: int = 0, device: str | None = None, reads: int = 0) -> None:
        super().__init__()
        self.vocabulary, self.device, self.reads = vocabulary, device, reads
        self.live = self.logits = self.gradients = self.flops = 0
        self.peaks = [(0, 0, 0)]
        self._known: weakref.WeakSet = weakref.WeakSet()
        self._elsewhere: weakref.WeakSet = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and count its result."""
        kwargs = dict(kwargs or {})
        given = list(tensors_in((args, kwargs)))
        self._known.update(tensor.untyped_storage() for tensor in given)
        if func is torch.ops.aten._local_scalar_dense.default and given[0].is_meta:
            return self.reads
        elsewhere = self._to_meta(given, kwargs)
        out = func(*args, **kwargs)
        if (count := FLOPS.get(func.overloadpacket)) is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        for tensor in tensors_in(out):
            if tensor.untyped_storage() not in self._known:
                self._add(tensor, elsewhere)
        return out

    def _to_meta(self, given: list[Tensor], kwargs: dict[str, Any]) -> bool:
        """Redirect an operation's result to the meta device; return whether it belongs to another device."""
        asked = kwargs.get("device")
        if self.device is None or asked is None:
            return any(tensor.untyped_storage() in self._elsewhere for tensor in given)
        kwargs["device"] = torch.device("meta")
        return asked.type not in ("meta", self.device)

    @property
    def peak(self) -> int:
        """Most live bytes."""
        return max(self.peaks)[0]

    def reset(self) -> None:
        """Begin a step: forget the peaks and the FLOPs."""
        gc.collect()
        self.peaks, self.flops = [], 0
        self.begin_part()

    def begin_part(self) -> None:
        """Begin a part of a step, with a peak of its own."""
        self.peaks.append((self.live, self.logits, self.gradients))

    def _add(self, tensor: Tensor, elsewhere: bool) -> None:
        storage = tensor.untyped_storage()
        self._known.add(storage)
        if elsewhere:
            self._elsewhere.add(storage)
            return
        size = storage.nbytes()
        logits = size if tensor.ndim > 1 and tensor.shape[-1] == self.vocabulary else 0
        self._move(size, logits)
        weakref.finalize(storage, self._move, -size, -logits)

    def _move(self, size: int, logits: int) -> None:
        self.live += size
        self.logits += logits
        if self.live > self.peaks[-1][0]:
            self.peaks[-1] = self.live, self.logits, self.gradients


@contextmanager
def frozen() -> Iterator[None]:
    """Keep collections of garbage from going through all that is in memory now, such as all that is imported."""
    if gc.get_freeze_count():  # within another one
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Return the tensors in nested lists, tuples and mappings."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple | Mapping):
        for inner in value.values() if isinstance(value, Mapping) else value:
            yield from tensors_in(inner)


def give_fake_tensors(model: nn.Module, ledger: Ledger) -> None:
    """Replace the tensors of a model on the meta device by fake ones on the CPU."""
    with FakeTensorMode(allow_non_fake_inputs=True), ledger:
        tensors = [*model.parameters(), *model.buffers()]
        made = {id(tensor): _faked(tensor) for tensor in tensors}
        for module in model.modules():
            own = *module.named_parameters("", False, False), *module.named_buffers("", False, False)
            for name, tensor in own:
                setattr(module, name, made[id(tensor)])


def _faked(tensor: Tensor) -> Any:
    # of its shape, for bitsandbytes' kind of parameter takes part in an operation by its own rules
    fake: Any = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
    if isinstance(tensor, nn.Parameter):
        fake = nn.Parameter(fake, requires_grad=tensor.requires_grad)
    if (state := getattr(tensor, "quant_state", None)) is not None:
        fake.quant_state = _faked_state(state)
    return fake


def _faked_state(state: Any) -> Any:
    state = copy(state)
    for name, value in vars(state).items():
        if isinstance(value, Tensor):
            setattr(state, name, _faked(value))
    state.state2 = _faked_state(state.state2) if state.state2 else None
    return state
