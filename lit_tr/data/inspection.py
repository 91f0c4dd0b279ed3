"""A report of a data set: rows kept and left out, lengths, duplicates, packs, and some examples as they are scored."""

from array import array
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console
from rich.table import Table

from lit_tr.data.intake import BadRows, Intake, Layout
from lit_tr.data.packing import fill
from lit_tr.data.rows import Source
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.errors import BadRowError

PERCENTILES = (5, 25, 50, 75, 95, 99, 100)
OPEN, CLOSE = "⟦", "⟧"
WHOLE = "prompt and longer response"
CONTEXT = 4
"""Tokens before one that are decoded with it, for its spaces."""


@dataclass
class Tally(BadRows):
    """Counts bad rows, whatever is done with them in training.

    Args:
        first: where the first one of each reason stands, and what is particular to it.
    """

    first: dict[str, str] = field(default_factory=dict)

    def add(self, where: str, error: BadRowError) -> None:
        """Count one."""
        self.counts[error.reason] += 1
        self.first.setdefault(error.reason, f"{where}{f' ({error.detail})' if error.detail else ''}")


@dataclass
class Inspection:
    """What was found in the rows of a source.

    Args:
        name: `train`, `val` or `test`.
        layout: how batches are made.
        bad: the rows that are left out.
        rows: rows that are kept.
        lengths: tokens of each example's prompt, chosen and rejected response, of the prompt with the longer one, and
            of the example in a pack.
        duplicates: where examples are that repeat an earlier one.
        conflicts: where examples are whose responses an earlier one has in the other order.
        cut: examples whose prompt was cut.
        weighed: examples with a margin, or a label confidence below 1.
        packed: tokens of batches of `batch_size` in packs.
        padded: tokens of the same batches, padded.
        shown: the first examples.
    """

    name: str
    layout: Layout
    bad: Tally
    rows: int = 0
    lengths: dict[str, array] = field(
        default_factory=lambda: {name: array("l") for name in ("prompt", "chosen", "rejected", WHOLE, "example")}
    )
    duplicates: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)
    cut: int = 0
    weighed: int = 0
    packed: int = 0
    padded: int = 0
    shown: list[TokenizedExample] = field(default_factory=list)

    @property
    def examples(self) -> int:
        """How many examples there are."""
        return len(self.lengths["example"])

    def packs(self) -> list[list[int]]:
        """Return the examples of each batch where batches are filled by tokens."""
        return fill(self.lengths["example"], self.layout.max_tokens) if self.layout.max_tokens else []


def inspect(name: str, source: Source, intake: Intake, show: int, order: int | None = None) -> Inspection:
    """Go through the rows of a source once; of the texts, hashes are held.

    Args:
        name: `train`, `val` or `test`.
        source: where the rows come from.
        intake: what becomes of them in training.
        show: how many examples to keep.
        order: as for `Source.read`.
    """
    found = Inspection(name, intake.layout, Tally(True))
    intake = replace(intake, bad_rows=found.bad)
    seen: set[bytes] = set()
    batch: list[TokenizedExample] = []
    for record in source.records(order):
        examples = intake(record)
        found.rows += bool(examples)
        for example in examples:
            _count(found, record.location, example, seen)
            if len(found.shown) < show:
                found.shown.append(example)
            batch.append(example)
            if len(batch) == intake.layout.batch_size:
                _lay_out(found, batch)
                batch = []
    if batch and intake.layout.batch_size:
        _lay_out(found, batch)
    return found


def _count(found: Inspection, where: str, example: TokenizedExample, seen: set[bytes]) -> None:
    for name, ids in (("prompt", example.prompt), ("chosen", example.chosen), ("rejected", example.rejected)):
        if ids is not None:
            found.lengths[name].append(len(ids))
    found.lengths[WHOLE].append(len(example.prompt) + max(map(len, example.responses)))
    found.lengths["example"].append(found.layout.collator.tokens(example))
    own, exchanged = (_hash(example.prompt, *pair) for pair in _orders(example))
    if own in seen:
        found.duplicates.append(where)
    if exchanged in seen:
        found.conflicts.append(where)
    seen.add(own)
    found.cut += example.cut > 0
    found.weighed += example.margin != 0 or example.confidence != 1


def _orders(example: TokenizedExample) -> Any:
    return (example.chosen, example.rejected), (example.rejected, example.chosen)


def _hash(*parts: list[int] | None) -> bytes:
    return blake2b(repr(parts).encode(), digest_size=8).digest()


def _lay_out(found: Inspection, batch: list[TokenizedExample]) -> None:
    packed, padded = (cast(Any, replace(found.layout.collator, packed=one)(batch)) for one in (True, False))
    found.packed += packed.input_ids.numel()
    found.padded += padded.input_ids.numel()


def report(found: Inspection, source: Source, tokenizer: Any, raises: bool, console: Console) -> None:
    """Print what was found.

    Args:
        found: what was found.
        source: where it was found.
        tokenizer: the tokenizer of the examples.
        raises: training would stop at a bad row.
        console: where to print.
    """
    console.rule(f"data.{found.name}")
    print_line = _plain(console)
    print_line(f"{source}")
    several = f", {found.examples} examples" if found.examples != found.rows else ""
    print_line(
        f"{found.rows + found.bad.counts.total()} rows: {found.rows} kept{several}, {found.bad.counts.total()} bad"
    )
    for reason, count in found.bad.counts.most_common():
        print_line(f"  {count} x {reason}; first: {found.bad.first[reason]}")
    if raises and found.bad.counts:
        print_line("  fit stops at the first of them, but for data.on_bad_row: skip")
    if not found.examples:
        return
    console.print(_percentiles(found))
    print_line(f"{found.cut} prompts cut")
    for title, places in (("duplicates", found.duplicates), ("conflicts: one before, exchanged", found.conflicts)):
        print_line(f"{len(places)} {title}{f'; first: {places[0]}' if places else ''}")
    if found.weighed:
        print_line(f"{found.weighed} examples have a margin or a label confidence below 1")
    if packs := found.packs():
        share = sum(found.lengths["example"]) / (len(packs) * (found.layout.max_tokens or 1))
        print_line(f"{len(packs)} packs of up to {found.layout.max_tokens} tokens, {share:.1%} full")
    if found.padded:
        batches, times = f"batches of {found.layout.batch_size}", found.padded / found.packed
        print_line(f"{batches}: {found.packed:,} tokens in packs; padded {found.padded:,}, {times:.2f} times as many")
    for number, example in enumerate(found.shown):
        console.rule(f"example {number}", style="dim")
        print_line(_printable(tokenizer.decode(example.prompt)))
        pair = (
            ("chosen", example.chosen, example.chosen_scored),
            ("rejected", example.rejected, example.rejected_scored),
        )
        for title, ids, scored in pair:
            if ids is not None:
                print_line(f"[{title}] {rendered(example.prompt, ids, scored, tokenizer)}")


def rendered(prompt: list[int], response: list[int], scored: list[bool] | None, tokenizer: Any) -> str:
    """Return a response as the model reads it; scored tokens stand in brackets, separated by bars."""
    marks = [True] * len(response) if scored is None else scored
    text, before = "", prompt[-CONTEXT:]
    for is_scored, group in groupby(zip(response, marks, strict=True), key=lambda pair: pair[1]):
        ids = [token for token, _ in group]
        text += f"{OPEN}{_parted(before, ids, tokenizer)}{CLOSE}" if is_scored else _behind(before, ids, tokenizer)
        before = (before + ids)[-CONTEXT:]
    return _printable(text)


def _parted(before: list[int], ids: list[int], tokenizer: Any) -> str:
    whole = before + ids
    pieces = [
        _behind(whole[max(i - CONTEXT, 0) : i], whole[i : i + 1], tokenizer) for i in range(len(before), len(whole))
    ]
    # a character of several tokens cannot be split
    return _behind(before, ids, tokenizer) if any("\ufffd" in piece for piece in pieces) else "|".join(pieces)


def _behind(before: list[int], ids: list[int], tokenizer: Any) -> str:
    """Return the text of tokens after others: some tokenizers leave out the space before the first token."""
    return tokenizer.decode(before + ids)[len(tokenizer.decode(before)) :]


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def _percentiles(found: Inspection) -> Table:
    table = Table("tokens", *(f"{percent} %" if percent < 100 else "most" for percent in PERCENTILES), "mean")
    for name, lengths in found.lengths.items():
        if lengths:
            values = np.percentile(lengths, PERCENTILES, method="inverted_cdf")
            table.add_row(name, *(f"{value:.0f}" for value in values), f"{np.mean(lengths):.0f}")
    return table


def _plain(console: Console) -> Any:
    return lambda line: console.print(line, markup=False, highlight=False, soft_wrap=True)


def draw(found: Inspection, max_length: int, path: Path) -> None:
    """Draw how long prompts and responses are, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    lengths = {name: values for name, values in found.lengths.items() if values and name != "example"}
    most = max(max(values) for values in lengths.values())
    bins = np.linspace(0, most + 1, 60)
    for name, values in lengths.items():
        axes.hist(
            values, bins.tolist(), histtype="step", linewidth=1.5, label=f"{name} (median {np.median(values):.0f})"
        )
    if most > max_length / 2:
        axes.axvline(max_length, color="black", linestyle=":", label=f"max_length {max_length}")
    axes.set(xlabel="tokens", ylabel="examples", title=f"data.{found.name}: {found.examples} examples", yscale="log")
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
