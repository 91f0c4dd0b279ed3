"""The report of `lit-tr plan`: the answer first, then how it comes about."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields

from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_tr.planning.answers import SAMPLE, Answers, Kept, Say
from lit_tr.planning.plan import Memory

SWITCHED: dict[bool | str, str] = {True: "on", False: "off", "selective": "selective"}


@contextmanager
def progress() -> Iterator[Say]:
    """Show what is being worked out, on stderr: in a moving line on a terminal, else in a line for each part."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda text: print(f"lit-tr: planning {text}", file=sys.stderr, flush=True)
        return
    with console.status("planning") as status:
        yield lambda text: status.update(f"planning {text}")


def report(found: Answers, console: Console) -> None:
    """Print what has been found out, within the console's width."""
    _named(console, _answer(found))
    console.print()
    _named(console, _details(found))
    _print(console, "Memory at the peak on each device, by part", _parts(found))
    _print(console, "With other references: what they hold, and the peak on each device", _kinds(found))
    if found.devices:
        _print(console, "Time of a step by number of devices (simulated)", _scaling(found))


def _answer(found: Answers) -> dict[str, str]:
    memory, layout = found.asked.memory, next(iter(found.layouts))
    said = {"peak": f"{size(found.peak)} on each device, {layout}"}
    if memory:
        of = f" of this machine's {found.asked.device}" if found.asked.device else ""
        said["fits"] = f"{'yes' if found.peak <= memory else 'no'}, in {size(memory)}{of}"
        most = f"data.max_tokens {found.largest}" if found.largest else "none fits"
        said["largest pack"] = most
    said["time"] = _time(found)
    for kept in found.choices:
        said[f"checkpointing {SWITCHED[kept.checkpointing]}"] = _kept(kept, memory)
    return said


def _time(found: Answers) -> str:
    if found.steps is None:
        return "not known: the rows are not on this machine; give --rows"
    if found.hours is None:
        return f"{found.steps} steps; hours need --flops"
    return f"{_hours(found.hours)} of training, {found.steps} steps at {found.asked.flops:.3g} FLOP/s on each device"


def _kept(kept: Kept, memory: int | None) -> str:
    fits = [] if not memory else ["fits" if kept.peak <= memory else "does not fit"]
    hours = [] if kept.hours is None else [_hours(kept.hours)]
    return ", ".join([f"peak {size(kept.peak)}", *fits, f"{kept.flops:.3g} FLOPs a step", *hours])


def _details(found: Answers) -> dict[str, str]:
    run, lengths, plan = found.plan.run, found.rows.lengths, found.plan
    mean = f"the mean of the first {SAMPLE} rows, or of all" if found.rows.sizes else "the most of data.max_length"
    said = {
        "policy": f"{run.source.path}: {plan.parameters:,} parameters, {size(plan.trained)} of them trained",
        "devices": f"{run.devices}{', sharded' if run.sharded else ''}, {run.precision}; memory of process and driver "
        "is not counted",
        "examples": f"{lengths.prompt} + 2 x {lengths.response} tokens, {mean}; peaks are of the longest",
        "a step": f"{found.choices[0].flops:.3g} FLOPs on each device",
    }
    if found.rows.count is not None:
        said["rows"] = f"{found.rows.count} examples"
    if run.sharded:
        most = next(iter(found.loading.values()))
        where = "on each device" if found.plan.loads_on_devices else "of host memory on rank 0"
        said["while loading"] = f"{size(most)} {where}, before all weights are sharded"
    return said


def _parts(found: Answers) -> Table:
    peaks = [kinds[next(iter(kinds))] for kinds in found.layouts.values()]
    table = _table("part", *found.layouts)
    for name in (one.name for one in fields(Memory)):
        if any(getattr(peak, name) for peak in peaks):
            table.add_row(name, *(size(getattr(peak, name)) for peak in peaks))
    table.add_row("all", *(size(peak.total) for peak in peaks))
    return table


def _kinds(found: Answers) -> Table:
    memory = found.asked.memory
    table = _table("reference", "held", *found.layouts, *(["fits"] if memory else []))
    configured = next(iter(found.layouts))
    for kind in found.loading:
        peaks = [kinds[kind] for kinds in found.layouts.values()]
        fits = ["yes" if found.needed(configured, kind) <= memory else "no"] if memory else []
        held = size(peaks[0].reference + peaks[0].initial)
        table.add_row(kind, held, *(size(peak.total) for peak in peaks), *fits)
    return table


def _scaling(found: Answers) -> Table:
    table = _table("devices", "computes", "waits", "sends", "step", "sent by each", "of linear")
    for one in found.devices:
        times = (_seconds(time) for time in (one.computing, one.waiting, one.sending, one.seconds))
        table.add_row(str(one.devices), *times, size(round(one.sent)), f"{one.computing / one.seconds:.0%}")
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column(first, overflow="fold")
    for name in others:
        table.add_column(name, justify="right", overflow="fold")
    return table


def _print(console: Console, title: str, table: Table) -> None:
    console.print()
    console.print(Text(title, style="bold"))
    console.print(table)


def _named(console: Console, lines: dict[str, str]) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in lines.items():
        table.add_row(name, Text(text))
    console.print(table, highlight=False)


def size(count: int) -> str:
    """Return a number of bytes with its unit."""
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB" if count else "-"


def _hours(hours: float) -> str:
    return f"{hours:.3g} hours"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds else "-"
