"""Pictures of training: the metrics, the updates of the reference, and how the margin jumps at them."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from statistics import mean
from typing import Any

import numpy as np

from lit_tr.evaluation.curves import CURVES, MOST_MARKS, draw, from_start, handles, mark, points, smoothed
from lit_tr.evaluation.page.found import Run
from lit_tr.evaluation.page.groups import Group
from lit_tr.evaluation.page.pictures import Picture, Styles, legend, new_axes

MARKED, JUMP = "reference/alpha", "reference/margin_jump"
JUMPS = "jump of the reward margin (mean per pair)"
ONE = "Training is smoothed (raw: pale)."
SEVERAL = (
    f"Lines: training, smoothed, mean over seeds. Marks on them: updates of the reference, if at most {MOST_MARKS}."
)
AT_UPDATE = "Margin after an update of the reference less that before, on one batch."


def training(groups: Sequence[Group], styles: Styles) -> Iterator[Picture]:
    """Yield a picture for each metric of training and, after the margin's, one for its jumps at updates."""
    runs = [run for group in groups for run in group.runs]
    for name, label in CURVES.items():
        if any(points(run.metrics, f"train/{name}") for run in runs):
            caption = SEVERAL if len(runs) > 1 else ONE
            yield _picture(name, label, caption, _one if len(runs) == 1 else _several, groups, styles)
        if name == "rewards/margins" and any(points(run.metrics, JUMP) for run in runs):
            yield _picture("margin_jump", JUMPS, AT_UPDATE, _jumps, groups, styles)


def _picture(name: str, label: str, caption: str, drawn: Any, groups: Sequence[Group], styles: Styles) -> Picture:
    figure, axes = new_axes()
    shown = drawn(axes, name, groups, styles)
    axes.set(xlabel="optimizer step", ylabel=label.replace(" (", "\n("), xlim=(0, None))
    legend(figure, shown)
    title = label.partition(" (")[0]
    return Picture(name.replace("/", "_"), title[0].upper() + title[1:], caption, figure)


def _one(axes: Any, name: str, groups: Sequence[Group], styles: Styles) -> Iterable[Any]:
    """Draw a metric of one run; return the entries of the legend, as the other functions do."""
    [run] = groups[0].runs
    draw(axes, run.metrics, name)
    mark(axes, _updates(run))
    return handles(bool(points(run.metrics, f"val/{name}")), bool(_updates(run)))


def _several(axes: Any, name: str, groups: Sequence[Group], styles: Styles) -> Iterable[Any]:
    for group in groups:
        _curve(axes, name, group, styles(group))
    return styles.handles()


def _curve(axes: Any, name: str, group: Group, style: dict[str, Any]) -> None:
    curves = [smoothed(raw) for run in group.runs if (raw := from_start(run.metrics, name))]
    if not curves:
        return
    curve = _means(point for one in curves for point in one)
    updates = _updates(group.runs[0])
    axes.plot([*curve], [*curve.values()], **{**style, "marker": ""}, linewidth=1.4, alpha=0.85)
    if len(updates) <= MOST_MARKS:
        heights = np.interp(updates, [*curve], [*curve.values()])
        axes.plot(updates, heights, **{**style, "linestyle": "none"}, markersize=4.5, alpha=0.85)


def _jumps(axes: Any, name: str, groups: Sequence[Group], styles: Styles) -> Iterable[Any]:
    axes.axhline(0, color="#999999", linewidth=0.8)
    for group in groups:
        jumps = _means(point for run in group.runs for point in points(run.metrics, JUMP))
        style = {**styles(group), "linestyle": "none"}
        axes.vlines(
            [*jumps], 0, [*jumps.values()], color=style["color"], linestyles=styles(group)["linestyle"], alpha=0.5
        )
        axes.plot([*jumps], [*jumps.values()], **style, markersize=5, alpha=0.85)
    return styles.handles()


def _updates(run: Run) -> list[int]:
    return [step for step, _ in points(run.metrics, MARKED)]


def _means(values: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Return the mean of the values of each step, in order."""
    by_step = groupby(sorted(values), key=lambda point: point[0])
    return {step: mean(value for _, value in some) for step, some in by_step}
