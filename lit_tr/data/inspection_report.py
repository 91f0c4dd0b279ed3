"""The report of `lit-tr data inspect`: text of 80 columns, and a picture of the lengths."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Table

from lit_tr.data.bad_rows import BadRow, BadRows
from lit_tr.data.cache import TokenCache
from lit_tr.data.datamodule import PreferenceDataModule
from lit_tr.data.inspection import WHOLE, Lengths, batch_tokens, cost, formats, overlap, repeats
from lit_tr.data.marking import LEGEND, escaped, marked
from lit_tr.data.rows import Source
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.errors import UserError

PERCENTILES = (5, 25, 50, 75, 95, 99, 100)
MAX_LENGTHS = (512, 1024, 2048, 4096)
STYLES = {"prompt": ("0.6", "-"), "chosen": ("C0", "--"), "rejected": ("C1", ":"), WHOLE: ("black", "-")}
"""Color and line of each curve; they differ in grey too."""

NAMED = 5
"""Bad rows of each reason whose locations are printed."""


class Report:
    """Prints what is in a token cache, and what `fit` would make of it.

    Args:
        name: `train`, `val` or `test`.
        data: the data module.
        source: where the rows come from.
        cache: their tokens.
        console: where to print.
    """

    def __init__(
        self, name: str, data: PreferenceDataModule, source: Source, cache: TokenCache, console: Console
    ) -> None:
        self.name, self.data, self.source, self.cache, self.console = name, data, source, cache, console
        self.lengths = Lengths.of(cache) if len(cache) else None

    def print(self, train: TokenCache | None = None, examples: int = 0) -> None:
        """Print all of it.

        Args:
            train: the rows of training, if these are others.
            examples: how many examples to show.
        """
        self.console.rule(f"data.{self.name}", align="left")
        self._rows()
        if self.lengths is None:
            return
        self.console.print("", _percentiles(self.lengths), "", self._costs(self.lengths), "", sep="\n")
        self._repeats(train)
        self._batches()
        for index in range(min(examples, len(self.cache))):
            self._example(index)

    def _say(self, title: str, text: str) -> None:
        self.console.print(f"{title:<11}{text}", markup=False, highlight=False, soft_wrap=True)

    def _rows(self) -> None:
        bad, count = self.cache.bad_rows, len(self.cache.bad_rows.found)
        several = f"; {len(self.cache):,} examples" if len(self.cache) != bad.rows - count else ""
        self._say("source", str(self.source))
        found = formats(self.source, self.data.processor)
        for format, rows in found.most_common():
            self._say("format", f"{format} ({rows} of the first {found.total()} good rows)")
        self._say("rows", f"{bad.rows:,}: {bad.rows - count:,} kept, {count:,} left out{several}")
        too_large = self._too_large()
        self._bad_rows(bad.found + too_large)
        self._say("fit", self._verdict(too_large))
        if self.cache.unread:
            self._say("not read", f"columns that no format reads: {', '.join(self.cache.unread)}")

    def _verdict(self, too_large: list[BadRow]) -> str:
        """Return whether `fit` would take the rows, by what it counts itself."""
        bad, most = self.cache.bad_rows, self.data.max_bad_rows
        try:
            BadRows(most).add(bad.rows, bad.found + too_large)
        except UserError:
            return f"stops: more rows are left out than data.max_bad_rows {most:g} allows"
        return "takes these rows" if len(self.cache) > len(too_large) else "stops: no rows to train on"

    def _bad_rows(self, found: list[BadRow]) -> None:
        by_reason: dict[str, list[BadRow]] = {}
        for row in found:
            by_reason.setdefault(row.reason, []).append(row)
        for reason, rows in sorted(by_reason.items(), key=lambda pair: -len(pair[1])):
            self._say("", f"{len(rows):,} x {reason}{'; first:' if len(rows) > NAMED else ':'}")
            for row in rows[:NAMED]:
                self._say("", f"  {row.location}{_detail(row)}")

    def _too_large(self) -> list[BadRow]:
        most = self.data.max_tokens
        if not most or not len(self.cache):
            return []
        return self.cache.too_large(self.data.collator, most)

    def _costs(self, lengths: Lengths) -> Table:
        table = _table("max_length", "examples lost", "prompts truncated", "tokens an epoch")
        count, data, unknown = len(self.cache) + len(lengths.refused), self.data, int((lengths.refused < 0).sum())
        notes = [f"{unknown:,} refused rows, of unknown length, count as lost"] * bool(unknown)
        notes += ["responses count as they are truncated now"] * data.truncate_responses
        table.caption, table.caption_justify = "; ".join(notes) or None, "left"
        for limit in sorted({*MAX_LENGTHS, data.max_length}):
            one = cost(lengths, limit, data.truncate_prompts, data.truncate_responses)
            shares = (f"{number:,} ({number / count:.1%})" for number in (one.lost, one.truncated))
            table.add_row(f"{limit}{' (set)' * (limit == data.max_length)}", *shares, f"{one.tokens:,}")
        return table

    def _repeats(self, train: TokenCache | None) -> None:
        found = repeats(self.cache)
        self._located("duplicates", found.duplicates, "an earlier example again")
        self._located("conflicts", found.conflicts, "an earlier example, chosen and rejected exchanged")
        if train is not None and len(train):
            self._located("overlap", overlap(self.cache, train), "a prompt of data.train too")
        margins, sure = self.cache.column("margin") != 0, self.cache.column("confidence") == 1
        if margins.any() or not sure.all():
            self._say("labels", f"{margins.sum():,} have a margin, {(~sure).sum():,} a confidence below 1")

    def _located(self, title: str, indices: NDArray[np.int64], meaning: str) -> None:
        self._say(title, f"{len(indices):,} ({meaning}){'; first:' if len(indices) else ''}")
        if len(indices):
            self._say("", f"  {self.cache.location(int(indices[0]))}")

    def _batches(self) -> None:
        data, sizes = self.data, self.cache.sizes(self.data.collator)
        fits = np.flatnonzero(sizes <= (data.max_tokens or sizes.max()))
        if not len(fits):
            return
        shuffle = data.shuffle and self.name == "train"
        draw = torch.Generator().manual_seed(data.seed) if shuffle else None
        batches = [fits[batch] for batch in data.layout.batches(sizes[fits].tolist(), draw)]
        if data.max_tokens:
            full = sizes[fits].sum() / (len(batches) * data.max_tokens)
            self._say("packs", f"{len(batches):,} of at most {data.max_tokens:,} tokens, {full:.1%} full")
        else:
            self._say("batches", f"{len(batches):,} of {data.batch_size} examples")
        found = batch_tokens(self.cache, batches)
        saved = f"{1 - found.packed / found.padded:.1%} saved{' (without KL rows)' * data.mismatched}"
        self._say("padding", f"packed {found.packed:,} tokens an epoch, padded {found.padded:,}: {saved}")

    def _example(self, index: int) -> None:
        example = self.cache[index]
        self.console.rule(f"example {index}", align="left", style="dim")
        if not index:
            self.console.print(LEGEND, "", style="dim", markup=False, highlight=False, sep="\n")
        self._tokens("prompt", [], example.prompt, [False] * len(example.prompt))
        for title, ids, scored in _responses(example):
            self._tokens(title, example.prompt, ids, scored)

    def _tokens(self, title: str, before: list[int], ids: list[int], scored: Sequence[bool]) -> None:
        self.console.print(f"[bold]{title}:[/bold]", highlight=False)
        self.console.print(marked(before, ids, list(scored), self.data.tokenizer), soft_wrap=True)


def _responses(example: TokenizedExample) -> list[tuple[str, list[int], list[bool]]]:
    sides = (
        ("chosen", example.chosen, example.chosen_scored),
        ("rejected", example.rejected, example.rejected_scored),
    )
    return [(title, ids, scored or [True] * len(ids)) for title, ids, scored in sides if ids is not None]


def _detail(row: BadRow) -> str:
    return f" ({escaped(row.detail)})" if row.detail else ""


def _table(first: str, *heads: str) -> Table:
    table = Table(first, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for head in heads:
        table.add_column(head, justify="right")
    return table


def _percentiles(lengths: Lengths) -> Table:
    heads = (f"{percent} %" if percent < 100 else "most" for percent in PERCENTILES)
    table = _table("tokens, whole", *heads, "mean")
    for name, values in lengths.by_name().items():
        found = np.percentile(values, PERCENTILES, method="inverted_cdf")
        table.add_row(name, *(f"{value:.0f}" for value in found), f"{np.mean(values):.0f}")
    return table


def draw(name: str, lengths: Lengths, max_length: int, path: Path) -> None:
    """Draw the lengths of a set before truncation, as a PNG file.

    Args:
        name: `train`, `val` or `test`.
        lengths: the lengths.
        max_length: the one that is set.
        path: where the picture goes.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes, values, shares = figure.subplots(), lengths.by_name(), np.linspace(0, 1, 1001)
    for title, one in values.items():
        color, line = STYLES[title]
        at_most = np.quantile(one, shares, method="inverted_cdf")
        label = f"{title} (median {np.median(one):.0f})"
        axes.plot(at_most, 100 * shares, color=color, linestyle=line, drawstyle="steps-post", label=label)
    over = np.mean(values[WHOLE] > max_length)
    label = f"max_length {max_length}: {over:.1%} of {WHOLE} are above"
    axes.axvline(max_length, color="black", linestyle="-.", linewidth=1, label=label)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.grid(color="0.9")
    axes.set(xlabel="length before truncation (tokens, log scale)", ylabel="examples up to this length (%)")
    axes.set_title(f"data.{name}: {len(values[WHOLE]):,} examples")
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
