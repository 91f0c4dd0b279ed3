"""The report of `lit-tr plan`."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lit_tr.data.collator import Collator
from lit_tr.data.datamodule import PreferenceDataModule
from lit_tr.data.process import RowProcessor
from lit_tr.data.rows import Record
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.errors import BadRowError, UserError
from lit_tr.module import PreferenceModule
from lit_tr.planning.plan import Lengths, Memory, Plan, Run
from lit_tr.policy.loading import PretrainedPolicy
from lit_tr.reference import Reference, alternatives

SAMPLE = 256
"""Number of rows whose lengths stand for those of all."""
PRECISIONS = {"16": "16-mixed", "bf16": "bf16-mixed", "32": "32-true", "None": "32-true"}


@dataclass(frozen=True)
class Asked:
    """Options of `lit-tr plan`.

    Args:
        memory: bytes of a device.
        devices: number of devices; None takes the trainer's.
        flops: FLOP/s that a device achieves.
        rows: examples to train on; None counts those of a local source.
    """

    memory: int | None = None
    devices: int | None = None
    flops: float | None = None
    rows: int | None = None


def planned_run(
    module: PreferenceModule,
    trainer: Any,
    log_initial: bool | None,
    devices: int | None,
    callbacks: Iterable[Any] = (),
) -> Run:
    """Return the run to plan, with the configured reference and its alternatives.

    Args:
        module: the module.
        trainer: the configuration of its trainer.
        log_initial: the module's argument.
        devices: number of devices; None takes the trainer's.
        callbacks: the callbacks, some of which may move the reference.

    Raises:
        UserError: the policy is a model in memory, or lit_tr does not train under the strategy.
    """
    own = trainer.devices
    own = len(own) if isinstance(own, list) else int(own) if str(own).isdigit() else 1
    precision, strategy = str(trainer.precision), str(trainer.strategy)
    if re.search("fsdp|deepspeed", strategy, re.IGNORECASE):
        raise UserError(f"lit_tr does not train under {strategy}: take ddp or ModelParallelStrategy")
    if not isinstance(source := module.source, PretrainedPolicy):
        raise UserError(
            "a policy that is a model in memory cannot be planned: give policy as a path or PretrainedPolicy"
        )
    alpha = _alpha(callbacks)
    return Run(
        source,
        _references(module, source, log_initial, alpha not in (None, 1.0)),
        module.optimizer,
        alpha,
        precision=PRECISIONS.get(precision, precision),
        devices=devices or own * trainer.num_nodes,
        sharded="ModelParallelStrategy" in strategy,
        accumulate=trainer.accumulate_grad_batches,
        cpu=trainer.accelerator == "cpu",
    )


def _alpha(callbacks: Iterable[Any]) -> float | None:
    """Return an alpha for the updates of the reference: 1 if all are hard, 0.5 if not, None without any."""
    updates = [one for one in callbacks if getattr(one, "reference", None) == "reference"]
    return (1.0 if all(one.hard for one in updates) else 0.5) if updates else None


def _references(
    module: PreferenceModule, source: PretrainedPolicy, log_initial: bool | None, soft: bool
) -> dict[str, tuple[Reference | None, Reference | None]]:
    if module.reference is None:
        return {f"no reference: {type(module.loss).__name__} needs none": (None, module.initial)}
    modules = {f"configured: {type(module.reference).__name__}": module}
    for name, reference in alternatives(source, soft).items():
        modules[name] = PreferenceModule(source, reference, module.loss, log_initial=log_initial)
    return {name: (one.reference, one.initial) for name, one in modules.items()}


def report(run: Run, data: PreferenceDataModule, trainer: Any, asked: Asked, console: Console) -> None:
    """Print memory, and steps and hours if they are asked for.

    Args:
        run: the run.
        data: makes the batches; its source is read if it is local.
        trainer: the trainer's configuration.
        asked: the options.
        console: where to print.
    """

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    plan, longest = Plan(run), Lengths(1, data.max_length - 1)
    size = data.batch_size or 1
    line(f"{run.source.path}: {plan.parameters:,} parameters; trained: {_size(plan.trained)} of weights")
    line(
        f"{run.devices} device(s){', sharded' if run.sharded else ''}, {run.precision}; examples of "
        f"{longest.prompt} + 2 x {longest.response} tokens, the most that data.max_length allows; "
        "memory of the process and the driver is not counted"
    )
    steps = {}
    for packed in (True, False):
        collator = Collator(packed, data.mismatched, data.max_length)
        full = data.max_tokens and packed
        examples = longest.pack(data.max_tokens or 0, collator) if full else longest.examples(max(size, 1))
        steps[packed] = plan.step(collator(examples))
    held = {name: plan.between_steps(*both) for name, both in run.references.items()}
    loading = {name: plan.while_loading(*both) if run.sharded else 0 for name, both in run.references.items()}
    if run.sharded:
        most = next(iter(loading.values()))
        line(f"while loading, before all weights are sharded: {_size(most)} per device, with the configured reference")
    for packed, step in steps.items():
        peaks = {name: plan.at_peak(memory, step) for name, memory in held.items()}
        amount = f"{data.max_tokens} tokens" if data.max_tokens and packed else f"{size} examples"
        title = f"{'packs' if packed else 'padded rows'} of {amount}, at the peak on each device"
        console.print(_table(peaks, loading, title, asked.memory))
    if asked.memory:
        collator = Collator(True, data.mismatched, data.max_length)
        most = plan.largest_pack(next(iter(held.values())), longest, collator, asked.memory)
        line(
            f"largest pack in {_size(asked.memory)} with the configured reference: data.max_tokens {most}"
            if most
            else f"no pack fits into {_size(asked.memory)} with the configured reference"
        )
    _time(plan, run, data, trainer, asked, line)


def _table(peaks: dict[str, Memory], loading: dict[str, int], title: str, memory: int | None) -> Table:
    names = [field.name for field in fields(Memory) if any(getattr(peak, field.name) for peak in peaks.values())]
    table = Table("kind", *names, "peak", *(["fits"] if memory else []), title=title, title_justify="left")
    for kind, peak in peaks.items():
        fits = ["yes" if max(peak.total, loading[kind]) <= memory else "no"] if memory else []
        table.add_row(kind, *(_size(getattr(peak, name)) for name in names), _size(peak.total), *fits)
    return table


def _time(plan: Plan, run: Run, data: PreferenceDataModule, trainer: Any, asked: Asked, line: Any) -> None:
    lengths, known = _mean_lengths(data)
    rows = asked.rows or (_count(data) if known else None)
    if rows is None:
        line("steps are not known: the source is not on this machine; give --rows")
        return
    collator = Collator(data.packed, data.mismatched, data.max_length)
    one = collator.tokens(lengths.examples(1)[0])
    size = data.batch_size or max((data.max_tokens or 0) // one, 1)
    epochs = trainer.max_epochs or (1000 if trainer.max_steps in (None, -1) else None)
    steps = -(-rows // (size * run.devices * run.accumulate)) * (epochs or 1)
    if trainer.max_steps not in (None, -1):
        steps = min(steps, trainer.max_steps) if epochs and epochs > 0 else trainer.max_steps
    where = f"the mean of the first {SAMPLE} rows, or of all" if known else "the most that data.max_length allows"
    line(f"{rows} examples of {lengths.prompt} + 2 x {lengths.response} tokens ({where}): {steps} steps")
    if not asked.flops:
        return
    step = plan.step(collator(lengths.examples(size)), fused=False)
    reference, initial = next(iter(run.references.values()))
    flops = float(step.flops + (step.forward if reference else 0)) * run.accumulate
    if initial:
        flops += step.forward / (trainer.log_every_n_steps or 50)
    hours = steps * flops / asked.flops / 3600
    line(f"{flops:.3g} FLOPs per step on each device; at {asked.flops:.3g} FLOP/s: {hours:.3g} hours of training")


def _is_local(source: Any) -> bool:
    if mixed := getattr(source, "sources", None):
        return all(map(_is_local, mixed))
    return not hasattr(source, "path") or Path(source.path).exists()


def _mean_lengths(data: PreferenceDataModule) -> tuple[Lengths, bool]:
    """Return the mean lengths of the first rows, and True; or the longest possible, and False if rows are not local."""
    source = data.sources["train"]
    if source is None or not _is_local(source):
        return Lengths(1, data.max_length - 1), False
    examples = [example for record in islice(source.records(), SAMPLE) for example in _kept(data.processor, record)]
    if not examples:
        raise UserError(f"data.train: {source} has no rows to train on")
    responses = [len(ids) for example in examples for ids in example.responses]
    prompts = sum(len(example.prompt) for example in examples)
    return Lengths(max(prompts // len(examples), 1), max(sum(responses) // len(responses), 1)), True


def _kept(processor: RowProcessor, record: Record) -> list[TokenizedExample]:
    try:
        return processor(record)
    except BadRowError:
        return []


def _count(data: PreferenceDataModule) -> int:
    return sum(record.row is not None for record in data.sources["train"].records())  # type: ignore[union-attr]


def _size(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e8 else f"{size / 1e6:.2f} MB" if size else "-"
