"""The curves of a run, from its `metrics.csv`."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CURVES = {
    "loss": "loss (mean per example)",
    "rewards/margins": "reward margin (mean per pair)",
    "rewards/accuracies": "accuracy (share of pairs)",
    "log_ratios": "log-ratio to the reference (nats per response)",
    "initial/log_ratios": "log-ratio to the initial policy (nats per response)",
    "logps/chosen": "log-prob of chosen responses (nats per response)",
}
"""The metrics that are drawn, with their units."""
PALETTE = ("#1f78b4", "#d95f02", "#222222", "#66a61e", "#cc79a7", "#7570b3", "#e6ab02", "#8c564b")
"""Colours, in the order that they are taken in."""
MARKERS = "os^DvPX*"
"""A marker for each colour, so that pictures can be read in grey."""
COLORS = {"train": PALETTE[0], "val": PALETTE[1]}
WEIGHT = 0.2
"""Weight of a new value in the smoothed curve, an exponential moving average in which the first one weighs no more."""
MOST_MARKS = 50
"""Updates of the reference that are marked one by one."""


def plot_curves(metrics: Path, picture: Path) -> None:
    """Draw the curves of training, raw and smoothed, and of validation, and the updates of the reference into a PNG."""
    from matplotlib.figure import Figure

    with metrics.open(newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(12, 7), layout="constrained")
    updates = [step for step, _ in points(rows, "reference/alpha")]
    for axes, (name, label) in zip(figure.subplots(2, 3).flat, CURVES.items(), strict=True):
        draw(axes, rows, name)
        axes.set_visible(bool(axes.lines))
        mark(axes, updates)
        axes.set(title=label.replace(" (", "\n("), xlabel="optimizer step", xlim=(0, None))
        axes.title.set_fontsize("medium")
        axes.grid(alpha=0.25)
    shown = handles(bool(points(rows, "val/loss")), bool(updates))
    figure.legend(handles=shown, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(picture, dpi=100)


def draw(axes: Any, rows: Sequence[dict[str, str]], name: str) -> None:
    """Draw a metric of training, raw and smoothed, and of validation."""
    raw, validated = from_start(rows, name), points(rows, f"val/{name}")
    if raw:
        axes.plot(*zip(*raw, strict=True), color=COLORS["train"], alpha=0.3, linewidth=1)
        axes.plot(*zip(*smoothed(raw), strict=True), color=COLORS["train"], linewidth=1.8)
    if validated:
        axes.plot(*zip(*validated, strict=True), color=COLORS["val"], marker="o", linestyle="--", markersize=5)


def mark(axes: Any, updates: list[int]) -> None:
    """Mark the steps at which the reference moved, unless they are so many that they would hide the curves."""
    if len(updates) <= MOST_MARKS:
        for step in updates:
            axes.axvline(step, color="#999999", linestyle=":", linewidth=0.8)


def points(rows: Sequence[dict[str, str]], name: str) -> list[tuple[int, float]]:
    """Return values of a metric, each with the optimizer steps that were done: in training, those before the batch."""
    done = 0 if name.startswith("train/") else 1
    return [(int(row["step"]) + done, float(row[name])) for row in rows if row.get(name)]


def from_start(rows: Sequence[dict[str, str]], name: str) -> list[tuple[int, float]]:
    """Return the points of a metric of training, and before them that of the first batch, before any step.

    `initial/...`, against the policy as it is then, begins at 0.
    """
    found, first = points(rows, f"train/{name}"), [(0, value) for _, value in points(rows, f"start/{name}")][:1]
    first = [(0, 0.0)] if name.startswith("initial/") else first
    return first + found if found and found[0][0] > 0 else found


def smoothed(raw: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Return steps with the exponential moving average of their values, its bias to the first one corrected."""
    mean, averaged = 0.0, []
    for count, (step, value) in enumerate(raw, 1):
        mean += WEIGHT / (1 - (1 - WEIGHT) ** count) * (value - mean)
        averaged.append((step, mean))
    return averaged


def handles(validated: bool, updates: bool) -> list[Any]:
    """Return the entries of a legend of what is drawn."""
    from matplotlib.lines import Line2D

    shown = [Line2D([], [], color=COLORS["train"], linewidth=1.8, label="training, smoothed (raw: pale)")]
    if validated:
        shown.append(Line2D([], [], color=COLORS["val"], marker="o", linestyle="--", label="validation"))
    if updates:
        shown.append(Line2D([], [], color="#999999", linestyle=":", label="reference update"))
    return shown
