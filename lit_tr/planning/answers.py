"""What `lit-tr plan` finds out: the peak, what fits, steps and hours, and how they change with devices."""

import math
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from lit_tr.data.collator import Collator
from lit_tr.data.datamodule import PreferenceDataModule
from lit_tr.data.process import RowProcessor
from lit_tr.data.rows import Record
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.errors import BadRowError, UserError
from lit_tr.planning.dry_run import Step
from lit_tr.planning.ledger import frozen
from lit_tr.planning.plan import Lengths, Memory, Plan, Run
from lit_tr.planning.ranks import Network, Scaled, Traffic, Unit, scaled, units, waits
from lit_tr.policy.adapters import has_adapter

SAMPLE = 256
"""Number of rows whose lengths stand for those of all."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Asked:
    """Options of `lit-tr plan`.

    Args:
        memory: bytes of a device.
        device: name of the device of this machine whose memory that is; None if it was given.
        devices: number of devices; None takes the trainer's.
        flops: FLOP/s that a device achieves.
        rows: examples to train on; None counts those of a local source.
        network: how fast devices send.
    """

    memory: int | None = None
    devices: int | None = None
    flops: float | None = None
    rows: int | None = None
    network: Network = Network()
    device: str | None = None


@dataclass(frozen=True)
class Rows:
    """The examples of a run.

    Args:
        lengths: mean tokens of an example.
        sizes: tokens of some examples in a pack; empty where the source is not on this machine, and lengths are the
            most that data.max_length allows.
        count: number of examples, if it is known.
    """

    lengths: Lengths
    sizes: list[int]
    count: int | None


@dataclass(frozen=True)
class Kept:
    """By gradient checkpointing: peak in bytes, FLOPs of a step on a device, hours if asked for."""

    checkpointing: bool | str
    peak: int
    flops: float
    hours: float | None


@dataclass(frozen=True)
class Answers:
    """All that is found out.

    Args:
        plan: of the run as configured.
        asked: the options.
        layouts: by the name of a layout of batches, the memory at the peak with each kind of reference; the configured
            layout comes first.
        loading: by the kind of reference, the most bytes of whole weights before they are sharded; 0 if they are not.
        largest: tokens of the largest pack that fits, 0 if none does, None if it is not asked for.
        rows: the examples.
        steps: optimizer steps, if they are known.
        hours: of training, if they are known.
        choices: with and without gradient checkpointing, as configured first.
        devices: the time of a step on one device and on more; empty unless there are several, and `flops` is given.
    """

    plan: Plan
    asked: Asked
    layouts: dict[str, dict[str, Memory]]
    loading: dict[str, int]
    largest: int | None
    rows: Rows
    steps: int | None
    hours: float | None
    choices: list[Kept]
    devices: list[Scaled]

    @property
    def peak(self) -> int:
        """Most bytes on a device, with the configured reference and layout of batches."""
        return self.needed(next(iter(self.layouts)), next(iter(self.loading)))

    def needed(self, layout: str, kind: str) -> int:
        """Return the most bytes on a device, while loading and in training."""
        return self.plan.needed(self.layouts[layout][kind], self.loading[kind])


@frozen()
def answer(run: Run, data: PreferenceDataModule, trainer: Any, asked: Asked, say: Say = lambda text: None) -> Answers:
    """Find out all that is asked for.

    Args:
        run: the run.
        data: makes the batches; its source is read if it is local.
        trainer: the trainer's configuration.
        asked: the options.
        say: is told what is done next.
    """
    say("the weights of the policy and the references")
    plan, longest = Plan(run), Lengths(1, data.max_length - 1)
    held = {name: plan.between_steps(*both) for name, both in run.references.items()}
    loading = {name: plan.while_loading(*both) if run.sharded else 0 for name, both in run.references.items()}
    steps, layouts = {}, {}
    for packed in (data.packed, not data.packed):
        name = _layout(data, packed)
        say(f"a step on {name}")
        steps[packed] = _full_step(plan, data, longest, packed)
        layouts[name] = {kind: plan.at_peak(memory, steps[packed]) for kind, memory in held.items()}
    configured, collator = next(iter(held.values())), Collator(True, data.mismatched, data.max_length)
    largest = None
    if asked.memory:
        say(f"the largest pack in {asked.memory / 1e9:.2f} GB")
        first = (data.packed and data.max_tokens) or 2**11
        largest = plan.largest_pack(configured, longest, collator, asked.memory, first)
    rows = _rows(data, asked)
    mean = _mean_step(plan, data, rows, steps[data.packed])
    count = _steps(trainer, run, data, rows)

    def timed(step: Step, devices: int) -> Scaled:
        return _timed(plan, data, trainer, rows, step, asked, devices)

    def kept(on: bool | str, peak: Step, step: Step) -> Kept:
        most = plan.needed(plan.at_peak(configured, peak), next(iter(loading.values())))
        flops = (step.flops + step.forward * _scored(run, trainer)) * run.accumulate
        return Kept(on, most, flops, _hours(count, timed(step, run.devices)) if asked.flops else None)

    say("the same with gradient checkpointing switched")
    on = run.source.gradient_checkpointing
    other = Plan(replace(run, source=replace(run.source, gradient_checkpointing=not on)))
    peak = _full_step(other, data, longest, data.packed)
    choices = [
        kept(on, steps[data.packed], mean),
        kept(not on, peak, _mean_step(other, data, rows, peak)),
    ]
    table = [timed(mean, n) for n in _counts(run.devices)] if asked.flops and run.devices > 1 else []
    return Answers(plan, asked, layouts, loading, largest, rows, count, choices[0].hours, choices, table)


def _layout(data: PreferenceDataModule, packed: bool) -> str:
    amount = f"{data.max_tokens} tokens" if data.max_tokens and packed else f"{data.batch_size or 1} examples"
    return f"{'packs' if packed else 'padded rows'} of {amount}"


def _full_step(plan: Plan, data: PreferenceDataModule, longest: Lengths, packed: bool) -> Step:
    """Return a step on the fullest batch of a layout."""
    collator = Collator(packed, data.mismatched, data.max_length)
    if data.max_tokens and packed:
        return plan.pack(data.max_tokens, longest, collator)
    return plan.step(collator(longest.examples(data.batch_size or 1)))


def _mean_step(plan: Plan, data: PreferenceDataModule, rows: Rows, full: Step) -> Step:
    """Return the step on a batch of mean examples; the full one where lengths are not known."""
    if not rows.sizes:
        return full
    collator = Collator(data.packed, data.mismatched, data.max_length)
    return plan.step(collator(rows.lengths.examples(_examples(data, rows))))


def _examples(data: PreferenceDataModule, rows: Rows) -> int:
    """Return the examples in a batch."""
    one = Collator(True, data.mismatched, data.max_length).tokens(rows.lengths.examples(1)[0])
    return data.batch_size or max((data.max_tokens or 0) // one, 1)


def _steps(trainer: Any, run: Run, data: PreferenceDataModule, rows: Rows) -> int | None:
    epochs, most = trainer.max_epochs, None if trainer.max_steps in (None, -1) else trainer.max_steps
    if rows.count is None:
        return most
    a_step = _examples(data, rows) * run.devices * run.accumulate
    epochs = epochs or (1 if most else 1000)  # as Lightning does
    steps = -(-rows.count // a_step) * epochs
    if most is None:
        return steps
    return min(steps, most) if trainer.max_epochs and epochs > 0 else most


def _scored(run: Run, trainer: Any) -> float:
    """Return the forward passes of reference and initial policy, for each of the policy's."""
    reference, initial = next(iter(run.references.values()))
    return (1.0 if reference else 0.0) + (1 / (trainer.log_every_n_steps or 50) if initial else 0.0)


def _timed(
    plan: Plan, data: PreferenceDataModule, trainer: Any, rows: Rows, step: Step, asked: Asked, devices: int
) -> Scaled:
    run = plan.run
    one = scaled(step, traffic(plan), _scored(run, trainer), asked.flops or math.inf, asked.network, devices)
    if devices == 1 or not rows.sizes:
        return one
    return replace(one, waiting=one.computing * waits(rows.sizes, data.layout, run.accumulate, devices))


def traffic(plan: Plan) -> Traffic:
    """Return what a step of a run sends: weights and gradients under FSDP2, gradients under DDP."""
    run = plan.run
    if not run.sharded:
        return Traffic([], Unit(0, plan.trained), batches=run.accumulate)
    reference, initial = next(iter(run.references.values()))
    beside = plan.between_steps(reference).reference * run.devices if has_adapter(plan.policy) else 0
    halves = run.precision == "bf16-mixed" and not run.source.quantize
    layers, rest = units(plan.stack.layers, plan.policy, halves, beside)
    return Traffic(layers, rest, 3 if reference else 2, run.accumulate)


def _hours(steps: int | None, one: Scaled) -> float | None:
    return None if steps is None else steps * one.seconds / 3600


def _counts(devices: int) -> list[int]:
    """Return the numbers of devices to show: 1, 2, 4, ... and the one that is asked for."""
    return [*(2**i for i in range(devices.bit_length()) if 2**i < devices), devices]


def _is_local(source: Any) -> bool:
    if mixed := getattr(source, "sources", None):
        return all(map(_is_local, mixed))
    return not hasattr(source, "path") or Path(source.path).exists()


def _rows(data: PreferenceDataModule, asked: Asked) -> Rows:
    source = data.sources["train"]
    if source is None or not _is_local(source):
        return Rows(Lengths(1, data.max_length - 1), [], asked.rows)
    examples = list(chain.from_iterable(_kept(data.processor, record) for record in islice(source.records(), SAMPLE)))
    if not examples:
        raise UserError(f"data.train: {source} has no rows to train on")
    responses = [len(ids) for example in examples for ids in example.responses]
    prompts = sum(len(example.prompt) for example in examples)
    lengths = Lengths(max(prompts // len(examples), 1), max(sum(responses) // len(responses), 1))
    collator = Collator(True, data.mismatched, data.max_length)
    return Rows(lengths, list(map(collator.tokens, examples)), asked.rows or _count(source.records()))


def _kept(processor: RowProcessor, record: Record) -> list[TokenizedExample]:
    with suppress(BadRowError):
        return processor(record)
    return []


def _count(records: Iterable[Record]) -> int:
    return sum(record.row is not None for record in records)
