"""The tables of a report: their texts, and beside each the figures as the files have them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lit_tr.evaluation.page.found import Comparison, Row
from lit_tr.evaluation.page.groups import Group, Point, common, measured, points
from lit_tr.evaluation.seeds import Mean, mean_of

ABSENT = "–"


@dataclass(frozen=True)
class Cell:
    """A cell: its text, and its figure, if it is one."""

    text: str
    figure: float | None = None


@dataclass(frozen=True)
class Table:
    """A table: its name, the heads of its columns, its rows, and how to read it."""

    name: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


def ends(groups: Sequence[Group]) -> Table | None:
    """Return the last evaluation of each group, with intervals; None if nothing was evaluated."""
    shown = {
        "score": "score",
        "win_rate": "win rate",
        "kl": "KL (nats)",
        "length": "tokens",
        "accuracy": "accuracy",
        "repetition": "repetition",
    }
    rows = {group.label: _last(common(group)) for group in groups}
    heads = {name: text for name, text in shown.items() if any(name in row for some in rows.values() for row in some)}
    if not heads:
        return None
    cells = [
        [Cell(label), Cell(str(len(some))), *(_measured(some, name) for name in heads)]
        for label, some in rows.items()
        if some
    ]
    caption = (
        "Means of the last evaluations that all seeds have, with 95 % intervals over seeds, or over prompts where "
        "there is one seed. KL is from the initial policy, a response."
    )
    return Table("ends", ["runs", "seeds", *heads.values()], cells, caption)


def peaks(groups: Sequence[Group], quality: str) -> Table | None:
    """Return the best evaluation of each group beside its last: what was lost after the peak; None if none has two."""
    cells = []
    for group in groups:
        last = max(common(group, "kl", quality), default=0)
        paths = [[point for point in points(one, quality) if 0 < point.step <= last] for one in _seeds(group)]
        if any(len(path) > 1 for path in paths):
            cells.append([Cell(group.label), *map(_of, _peak([path for path in paths if path]))])
    name = quality.replace("_", " ")
    heads = ["runs", f"{name} at its peak", "step of the peak", "at the end", "lost after the peak"]
    caption = (
        "Of each seed, then the mean over seeds with its 95 % interval. A peak is the highest of several noisy "
        "measurements, so it flatters: read a loss beside its interval."
    )
    return Table(f"peaks_{quality}", heads, cells, caption) if cells else None


def _seeds(group: Group) -> list[Group]:
    return [Group(group.method, group.setting, [run]) for run in group.runs]


def _peak(paths: Sequence[Sequence[Point]]) -> list[Mean]:
    """Return quality at the peak, its step, quality at the end and the loss between, over seeds."""
    tops = [max(path, key=lambda point: point.quality.value) for path in paths]
    last = [path[-1].quality.value for path in paths]
    heights = [top.quality.value for top in tops]
    lost = [top - end for top, end in zip(heights, last, strict=True)]
    return [mean_of(values) for values in (heights, [float(top.step) for top in tops], last, lost)]


def _last(rows: dict[int, list[Row]]) -> list[Row]:
    return rows[max(rows)] if rows and max(rows) > 0 else []


def _measured(rows: Sequence[Row], name: str) -> Cell:
    known = [row for row in rows if row.get(name) is not None]
    return _of(measured(known, name)) if known else Cell(ABSENT)


def _of(one: Mean) -> Cell:
    span = "" if math.isnan(one.low) else f" [{_short(one.low)}, {_short(one.high)}]"
    return Cell(f"{_short(one.value)}{span}", one.value)


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 or value == int(value) and abs(value) >= 10 else f"{value:.2f}"


SHARES = {
    "win_rate": ("win rate", "interval"),
    "discrete_win_rate": ("discrete", ""),
    "ties": ("ties", ""),
    "length_controlled": ("length-controlled", "length_controlled_interval"),
    "position_bias": ("position bias", "position_bias_interval"),
    "agreement": ("agreement of orders", "agreement_interval"),
    "repeatability": ("repeatability", ""),
}
"""Figures of `win_rates.json`: the head of the column, and the key of the interval."""


def win_rates(comparisons: Sequence[Comparison]) -> Table | None:
    """Return the win rates of all comparisons and criteria, in percent; None if there are none."""
    found = [(one, name, row) for one in comparisons for name, row in one.win_rates["criteria"].items()]
    if not found:
        return None
    known = [name for name in SHARES if any(row.get(name) is not None for _, _, row in found)]
    rows = [
        [
            Cell(" over ".join(one.names)),
            Cell(criterion),
            Cell(str(one.win_rates.get("judge", ABSENT))),
            *(Cell(str(row.get(name, ABSENT)), row.get(name)) for name in ("prompts", "pairs")),
            *(_share(row.get(name), row.get(SHARES[name][1])) for name in known),
            Cell(_unparsable(row)),
        ]
        for one, criterion, row in found
    ]
    heads = ["policies", "criterion", "judge", "prompts", "pairs", *(SHARES[name][0] for name in known), "unparsable"]
    caption = (
        "Percent, with 95 % intervals over prompts. Position bias: how much more the judge likes what it sees first. "
        "Unparsable: answers that could not be read, by the order of the pair; they are left out."
    )
    return Table("win_rates", heads, rows, caption)


def _share(value: float | None, interval: Sequence[float] | None) -> Cell:
    if value is None:
        return Cell(ABSENT)
    span = f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else ""
    return Cell(f"{100 * value:.1f}{span}", value)


def _unparsable(row: Row) -> str:
    counts: Any = row.get("unparsable")
    return ABSENT if counts is None else " + ".join(map(str, counts)) if isinstance(counts, list) else str(counts)
