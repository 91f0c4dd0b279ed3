"""Memory and FLOPs of a training step, measured by running it on tensors without values.

The step is run by the training code. Nothing is allocated or computed, so a model of any size takes seconds.
"""

import gc
import math
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import astuple, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import lit_tr.policy.quantization  # noqa: F401  bitsandbytes' operations are counted
from lit_tr.data.batches import PairBatch
from lit_tr.planning.attention import backward_flops, forward_flops
from lit_tr.policy.adapters import causal_model
from lit_tr.policy.head import logits
from lit_tr.policy.logprobs import response_log_probs, token_log_probs_and_kl


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


@dataclass(frozen=True)
class Step:
    """Memory and FLOPs of a training step.

    Args:
        activations: bytes at the peak that are neither logits nor gradients.
        logits: bytes of logits at the peak.
        gradients: bytes of gradients at the peak.
        forward: FLOPs of the forward pass.
        flops: FLOPs of forward and backward pass.
    """

    activations: int
    logits: int
    gradients: int
    forward: int
    flops: int

    @property
    def peak(self) -> int:
        """Most live bytes, beyond those between steps."""
        return self.activations + self.logits + self.gradients

    def extended(self, added: "Step", times: float) -> "Step":
        """Return the step of a deeper policy: this one's, and so many times what a further group of layers adds."""
        return Step(*(round(own + times * more) for own, more in zip(astuple(self), astuple(added), strict=True)))


def run_step(
    policy: nn.Module,
    batch: PairBatch,
    ledger: Ledger,
    context: AbstractContextManager,
    accumulated: bool,
    groups: list[list[nn.Module]],
    needs_kl: bool = False,
) -> list[tuple[Step, Step]]:
    """Run forward and backward pass of a policy, whose parameters are fake tensors made under the ledger.

    Args:
        policy: the policy.
        batch: the batch.
        ledger: counts.
        context: sets the forward pass's precision.
        accumulated: gradients of another batch are in memory already.
        groups: the policy's layers in groups that are alike.
        needs_kl: compute the KL divergence from a reference, with the head of one like the policy.

    Returns:
        The step with its peak until the last group of layers has its gradients, and with that from the first group on;
        with each what a further group in the middle adds to it, from those of the second one of three or more.
    """
    trained = [param for param in policy.parameters() if param.requires_grad]
    if accumulated:
        for param in trained:
            param.grad = torch.empty_like(param)
    ledger.gradients = sum(param.nbytes for param in trained) if accumulated else 0
    group_of = {id(param): i for i, group in enumerate(groups) for layer in group for param in layer.parameters()}
    starts: list[tuple[int, int]] = []  # live bytes and FLOPs where each group's forward pass starts
    begun: dict[int | None, int] = {None: 0}  # FLOPs where each group gets its first gradient

    def count(param: Tensor) -> None:
        if (group := group_of.get(id(param))) not in begun:
            begun[group] = ledger.flops
            ledger.begin_part()
        ledger.gradients += 0 if accumulated else param.nbytes

    def start(*_: Any) -> None:
        starts.append((ledger.live, ledger.flops))

    in_forward = [group[0].register_forward_pre_hook(start) for group in groups]
    hooks = [param.register_post_accumulate_grad_hook(count) for param in trained]
    ledger.reset()
    before = ledger.live - ledger.gradients
    with ledger:
        with context:
            loss = (_with_kl if needs_kl else response_log_probs)(policy, batch).sum()
        for hook in in_forward:  # or they would be called where a layer is computed again
            hook.remove()
        forward = ledger.flops
        loss.backward()
    for hook in hooks:
        hook.remove()
    for param in trained:
        param.grad = None
    ledger.gradients = 0
    ends = [
        Step(live - before - logits - gradients, logits, gradients, forward, ledger.flops)
        for live, logits, gradients in (max(ledger.peaks[:2]), max(ledger.peaks[-2:]))
    ]
    if len(groups) < 3:
        return [(end, Step(0, 0, 0, 0, 0)) for end in ends]
    kept, passed = (after - one for one, after in zip(starts[1], starts[2], strict=True))
    size = sum(param.nbytes for layer in groups[1] for param in layer.parameters() if param.requires_grad)
    flops = passed + begun.get(0, 0) - begun.get(1, 0)
    top, bottom = Step(kept, 0, size * accumulated, passed, flops), Step(0, 0, size, passed, flops)
    return list(zip(ends, (top, bottom), strict=True))


def _with_kl(policy: nn.Module, batch: Any) -> Tensor:
    """Return log-probs and KL divergences, with embeddings in the place of a reference's hidden states."""
    causal = causal_model(policy)
    hidden = causal.get_input_embeddings().weight.detach()[batch.targets]

    @torch.no_grad()
    def reference(tokens: slice) -> Tensor:
        return logits(causal, hidden[tokens])

    return token_log_probs_and_kl(policy, batch, reference)


def optimizer_costs(make: Callable[[Iterable[nn.Parameter]], Any], foreach: bool) -> tuple[float, float, float]:
    """Measure the memory of an optimizer by steps on small parameters, `foreach` on all at once if it can, as on a GPU.

    Returns:
        State, per byte of the parameters; temporary memory of a step, per byte of all parameters and of the largest.
    """
    (state, two), (_, three) = (_trial(make, foreach, count) for count in (2, 3))
    return state, max(three - two, 0.0), max(3 * two - 2 * three, 0.0)


def _trial(make: Callable[[Iterable[nn.Parameter]], Any], foreach: bool, count: int) -> tuple[float, float]:
    params = [nn.Parameter(torch.zeros(256, 256)) for _ in range(count)]
    optimizer = make(iter(params))
    for group in optimizer.param_groups:
        if foreach and not group.get("fused") and "foreach" in group:
            group["foreach"] = True
    for param in params:
        param.grad = torch.zeros_like(param)
    optimizer.step()
    ledger = Ledger()
    with ledger:
        optimizer.step()
    size = params[0].nbytes
    states = tensors_in(list(optimizer.state.values()))
    return sum(value.nbytes for value in states if value.numel() > 1) / (count * size), ledger.peak / size
