"""The memory of a run and the largest batch that fits, without weights.

Policy and references are made on the meta device, and a training step is run on tensors without values.
"""

import gc
import math
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import astuple, dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch.plugins import MixedPrecision

from lit_tr.data.batches import PairBatch
from lit_tr.data.collator import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.errors import UserError
from lit_tr.planning.attention import GPU
from lit_tr.planning.dry_run import Step, optimizer_costs, run_step
from lit_tr.planning.layers import Stack
from lit_tr.planning.ledger import Ledger, give_fake_tensors
from lit_tr.planning.references import cast, reference_bytes
from lit_tr.policy import head
from lit_tr.policy.adapters import causal_model, has_adapter
from lit_tr.policy.loading import PretrainedPolicy
from lit_tr.reference import Reference

UNITS = {"": 1, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


@dataclass(frozen=True)
class Memory:
    """Bytes on one device at the peak.

    Args:
        weights: the policy's weights and buffers.
        adapters: the trained adapter's weights.
        reference: the reference.
        initial: the initial policy, if it is logged.
        optimizer: the optimizer's state.
        gradients: gradients at the peak.
        buckets: copies of gradients that ranks exchange, or gathered weights.
        activations: activations, casts of weights, and temporary memory of the optimizer's step.
        logits: logits.
    """

    weights: int = 0
    adapters: int = 0
    reference: int = 0
    initial: int = 0
    optimizer: int = 0
    gradients: int = 0
    buckets: int = 0
    activations: int = 0
    logits: int = 0

    @property
    def total(self) -> int:
        """Their sum."""
        return sum(astuple(self))


@dataclass(frozen=True)
class Lengths:
    """Tokens of an example: of the prompt and of each of its two responses."""

    prompt: int
    response: int

    def examples(self, count: int) -> list[TokenizedExample]:
        """Return `count` examples with different prompts."""
        rest, response = [0] * (self.prompt - 1), [0] * self.response
        return [TokenizedExample([1 + i % 2**10, *rest], response, response) for i in range(count)]

    def pack(self, tokens: int, collator: Collator) -> list[TokenizedExample]:
        """Return examples that fill a pack of this many tokens."""
        size = collator.tokens(self.examples(1)[0])
        examples, left = self.examples(tokens // size), tokens % size
        share = 4 if collator.mismatched else 2
        if left > share:
            prompt = max(left * self.prompt // size, 1)
            examples += Lengths(prompt, (left - prompt) // share).examples(1)
        return examples


@dataclass(frozen=True)
class Run:
    """The configuration that memory and time depend on.

    Args:
        source: the policy.
        references: by name, a reference and the initial policy to log against, or None; the configured ones come first.
        optimizer: makes the optimizer.
        alpha: weight of the policy in the updates of the reference; None if it does not move.
        precision: the trainer's.
        devices: number of devices.
        sharded: whether the weights are sharded over them.
        accumulate: batches per step on each device.
        cpu: devices are CPUs, whose attention takes masks and whose optimizer steps on one parameter at a time.
        needs_kl: the loss compares the distributions of policy and reference: two heads are computed in one pass.
    """

    source: PretrainedPolicy
    references: Mapping[str, tuple[Reference | None, Reference | None]] = field(default_factory=dict)
    optimizer: Callable[..., Any] = torch.optim.AdamW
    alpha: float | None = None
    precision: str = "32-true"
    devices: int = 1
    sharded: bool = False
    accumulate: int = 1
    cpu: bool = False
    needs_kl: bool = False

    def context(self) -> AbstractContextManager:
        """Return the context of the forward pass."""
        if self.precision in ("bf16-mixed", "16-mixed"):
            return MixedPrecision(self.precision, "cpu").forward_context()  # type: ignore[arg-type]
        return nullcontext()


class Plan:
    """The memory and FLOPs of a run."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self._ledger = Ledger()
        with self._ledger:
            self.policy = cast(run.source.load_meta(), run.precision)
        gc.collect()
        self.weights = self._ledger.live
        trained = [param for param in self.policy.parameters() if param.requires_grad]
        self.parameters = causal_model(self.policy).num_parameters()
        self.trained = sum(param.nbytes for param in trained)
        self.largest = max(param.nbytes for param in trained)
        self.optimizer = optimizer_costs(run.optimizer, foreach=not run.cpu)
        self._found: dict[Any, tuple[int, int]] = {}
        self._packs: dict[Any, Step] = {}

    def between_steps(self, reference: Reference | None, initial: Reference | None = None) -> Memory:
        """Return the memory between steps on one device, with a reference and an initial policy to log against.

        Raises:
            UserError: as `reference_bytes` does.
        """
        run, adapters = self.run, self.trained if has_adapter(self.policy) else 0
        held = Memory(
            weights=self.weights - adapters,
            adapters=adapters,
            reference=self._bytes_of(reference)[1],
            initial=self._bytes_of(initial)[1],
            optimizer=round(self.optimizer[0] * self.trained),
        )
        if run.sharded and run.devices > 1:
            shards = Memory(*(math.ceil(size / run.devices) for size in astuple(held)))
            scales = math.ceil(self._scales * (1 - 1 / run.devices))
            return replace(shards, weights=shards.weights + scales, buckets=self._gathered)
        return replace(held, buckets=self.trained if run.devices > 1 else 0)

    @property
    def loads_on_devices(self) -> bool:
        """Whether each device loads whole weights, which are sharded then: those in 4 bits."""
        return self.run.source.quantize is not None

    def needed(self, peak: Memory, loading: int) -> int:
        """Return the most bytes on a device: in training, or before its weights are sharded."""
        return max(peak.total, loading if self.loads_on_devices else 0)

    def while_loading(self, reference: Reference | None, initial: Reference | None = None) -> int:
        """Return the most bytes of whole weights before all are sharded: the policy and a copy.

        In 4 bits they are on each device. Others are in host memory, on rank 0 alone; a device has no more of them than
        in training.
        """
        most, last = self._bytes_of(reference)[0], self._bytes_of(initial)[0]
        beside = math.ceil(most / self.run.devices) if self.loads_on_devices else 0  # the first copy's shard
        return self.weights + max(most, beside + last)

    def _bytes_of(self, reference: Reference | None) -> tuple[int, int]:
        key = type(reference), repr(reference and vars(reference))
        if key not in self._found:
            run, device = self.run, "cpu" if self.run.cpu else "cuda"
            self._found[key] = reference_bytes(reference, run.source, run.alpha, run.precision, device)
        return self._found[key]

    def at_peak(self, held: Memory, step: Step) -> Memory:
        """Return the memory at the peak of a step: in the backward pass or in the optimizer's step."""
        shards = self.run.devices if self.run.sharded else 1
        backward = replace(held, gradients=step.gradients // shards, activations=step.activations, logits=step.logits)
        beside = self.optimizer[1] * self.trained / shards + self.optimizer[2] * self.largest
        stepping = replace(held, gradients=self.trained // shards, activations=round(beside))
        return max(backward, stepping, key=lambda memory: memory.total)

    def step(self, batch: PairBatch) -> Step:
        """Return memory and FLOPs of a training step on one batch."""
        ledger, causal = self._ledger_of_steps, causal_model(self.policy)
        own, chunk = causal.config._attn_implementation, head.CHUNK
        if not self.run.cpu:
            head.CHUNK = head.CUDA_CHUNK
            if causal.is_backend_compatible():
                causal.set_attn_implementation(GPU)

        run, fresh = self.run, deepcopy(batch)  # packs keep masks
        given = self.policy, fresh, ledger, run.context(), run.accumulate > 1
        try:
            return self.stack.measure(lambda groups: run_step(*given, groups, run.needs_kl))
        finally:
            head.CHUNK = chunk
            causal.set_attn_implementation(own)

    def pack(self, tokens: int, lengths: Lengths, collator: Collator) -> Step:
        """Return a step on a pack of so many tokens."""
        key = tokens, lengths, collator
        if key not in self._packs:
            self._packs[key] = self.step(collator(lengths.pack(tokens, collator)))
        return self._packs[key]

    def largest_pack(self, held: Memory, lengths: Lengths, collator: Collator, memory: int, first: int = 2**11) -> int:
        """Return the tokens of the largest pack that fits into a device's `memory` beside `held`; 0 if none does.

        The search begins at `first` tokens.
        """

        def peak(tokens: int) -> int:
            return self.at_peak(held, self.pack(tokens, lengths, collator)).total

        first = max(first, collator.tokens(lengths.examples(1)[0]))
        tried, free = {first: peak(first), 2 * first: peak(2 * first)}, memory - held.total
        for _ in range(6):  # memory is nearly linear in tokens, and steeper for more of them
            (low, least), (high, most) = sorted(tried.items(), key=lambda at: abs(at[1] - memory))[:2]
            slope = max((most - least) / (high - low), 1.0)
            tokens = int(low + (held.total + 0.99 * free - least) / slope) // 64 * 64
            if tokens < 64 or tokens in tried:
                break
            tried[tokens] = peak(tokens)
            if 0.97 * free <= tried[tokens] - held.total <= free:
                break
        return max((count for count, taken in tried.items() if taken <= memory), default=0)

    @cached_property
    def stack(self) -> Stack:
        """The policy's layers."""
        return Stack(self.policy, getattr(self._config, "layer_types", None))

    @property
    def _config(self) -> Any:
        return causal_model(self.policy).config.get_text_config()

    @cached_property
    def _ledger_of_steps(self) -> Ledger:
        """The ledger of the dry runs, under which the layers that they take get fake tensors."""
        ledger = Ledger(self._config.vocab_size)
        with self.stack.first(self.stack.few or len(self.stack.layers)):
            give_fake_tensors(self.policy, ledger)
        return ledger

    @cached_property
    def _scales(self) -> int:
        """Bytes of the scales of 4-bit weights, which are not sharded."""
        states = [getattr(param, "quant_state", None) for param in self.policy.parameters()]
        return sum(state.absmax.nbytes + state.state2.absmax.nbytes for state in states if state)

    @cached_property
    def _gathered(self) -> int:
        """Bytes of the largest layer and of what is in none, with gradients: what is gathered at a time."""

        def size(module: Any) -> int:
            return sum(param.nbytes * (1 + param.requires_grad) for param in module.parameters())

        layers = [size(layer) for layer in self.stack.layers]
        return size(self.policy) - sum(layers) + max(layers, default=0)


def parse_bytes(text: str) -> int:
    """Return the bytes of a size such as `80GiB`, or raise a `UserError`."""
    match = re.fullmatch(r"([\d.]+)\s*([KMGT]i?|)B?", text.strip())
    if not match:
        raise UserError(f"--memory: {text!r} is not a size, such as 80GiB or 24GB")
    return int(float(match[1]) * UNITS[match[2]])
