"""The pictures of a report: narrow ones, which stand beside each other where the window is wide."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from statistics import mean
from typing import Any

from lit_tr.evaluation.best_of_n import BestOfN
from lit_tr.evaluation.curves import AT_START, CURVES, MARKERS, MOST_MARKS, PALETTE, draw, mark, points, smoothed
from lit_tr.evaluation.page.found import Comparison, Row, Run
from lit_tr.evaluation.page.groups import Group, Point
from lit_tr.evaluation.seeds import Mean

SIZE, DPI = (5.4, 4.2), 150
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
"""A style of line for each setting of a method."""
MARKED, JUMP = "reference/alpha", "reference/margin_jump"
HATCHES = ("", "///", "...", "xxx")
"""Hatches of bars, so that they can be told in grey."""
LABELS = {"score": "score (mean over prompts)", "win_rate": "win rate against the initial policy (share)"}


@dataclass(frozen=True)
class Picture:
    """A picture.

    Args:
        name: part of the name of its PNG.
        title: what it shows, in a line.
        caption: how to read it.
        figure: of matplotlib.
    """

    name: str
    title: str
    caption: str
    figure: Any

    def svg(self) -> str:
        """Return the picture as SVG, letters as paths, the same bytes for the same data."""
        import matplotlib

        text = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": self.name}):
            self.figure.savefig(text, format="svg", metadata={"Date": None})
        return text.getvalue()

    def png(self, path: Path) -> None:
        """Write the picture as PNG."""
        self.figure.savefig(path, dpi=DPI)


@dataclass(frozen=True)
class Styles:
    """Colour and marker of each method, and line of each setting, alike in all pictures of a report."""

    methods: Sequence[str]
    settings: Sequence[str]

    @classmethod
    def of(cls, groups: Sequence[Group]) -> "Styles":
        """Return the styles of some groups."""
        return cls(*(list(dict.fromkeys(getattr(one, name) for one in groups)) for name in ("method", "setting")))

    def __call__(self, group: Group) -> dict[str, Any]:
        """Return the style of a group, as matplotlib takes it."""
        return {**self.method(group.method), "linestyle": LINES[self.settings.index(group.setting) % len(LINES)]}

    def method(self, name: str) -> dict[str, Any]:
        """Return the style of a method."""
        index = self.methods.index(name)
        return {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}

    def handles(self) -> Iterator[Any]:
        """Yield the entries of a legend: the methods, and the settings where there are several."""
        from matplotlib.lines import Line2D

        for name in self.methods:
            yield Line2D([], [], label=name, **self.method(name))
        for setting, line in zip(self.settings, LINES, strict=False) if len(self.settings) > 1 else ():
            yield Line2D([], [], label=setting, color="#555555", linestyle=line)


def frontier(
    quality: str, found: dict[str, list[Point]], groups: Sequence[Group], best: Sequence[BestOfN], styles: Styles
) -> Picture:
    """Return quality against the square root of the divergence: a path of training for each group, and the best of N.

    Args:
        quality: `score` or `win_rate`.
        found: the points of each group, by its label.
        groups: the groups.
        best: the frontier of the initial policy; empty if it is not known.
        styles: of the groups.
    """
    figure, axes = _axes()
    for group in groups:
        _path(axes, found[group.label], styles(group))
    if best:
        roots, scores = [one.kl**0.5 for one in best], [one.score for one in best]
        axes.plot(roots, [one.value for one in scores], color="#555555", linewidth=1.2, linestyle=(0, (1, 1)), zorder=1)
        axes.fill_between(roots, *_ends(scores), color="#555555", alpha=0.12, linewidth=0)
        axes.annotate(f"best of {best[-1].n}", (roots[-1], scores[-1].value), (0, 5), textcoords="offset points",
                      ha="center", fontsize=8, color="#333333")  # fmt: skip
    axes.set(xlabel="√KL to the initial policy (√nats a response)", ylabel=LABELS[quality], xlim=(0, None))
    _legend(figure, styles.handles())
    line = (
        " The fine dotted line is the best of N samples of the initial policy, at the bound log N - (N-1)/N of its "
        "divergence, with its interval over prompts."
        if best
        else ""
    )
    return Picture(
        f"frontier_{quality}",
        f"{'Win rate' if quality == 'win_rate' else 'Score'} against distance",
        "Each line is training from the initial policy to the last evaluation (large marks), mean over seeds. "
        f"Bars are 95 % intervals: over seeds, or over prompts where there is one seed.{line}",
        figure,
    )


def _path(axes: Any, found: Sequence[Point], style: dict[str, Any]) -> None:
    if not found:
        return
    roots = [Mean(*(max(end, 0.0) ** 0.5 for end in point.kl)) for point in found]
    qualities = [point.quality for point in found]
    values = [[one.value for one in side] for side in (roots, qualities)]
    axes.plot(*values, **style, linewidth=1.1, markersize=3.5, alpha=0.75)
    bars = {name: style[name] for name in ("color", "marker")}
    axes.errorbar(values[0][-1], values[1][-1], _errors(qualities[-1]), _errors(roots[-1]), **bars, markersize=8,
                  linewidth=1.2, capsize=2.5, markeredgecolor="white")  # fmt: skip


def _errors(one: Mean) -> list[list[float]]:
    """Return the lengths of the bars below and above a mean, as matplotlib takes them."""
    return [[one.value - one.low], [one.high - one.value]]


def _ends(means: Sequence[Mean]) -> tuple[list[float], list[float]]:
    return [one.low for one in means], [one.high for one in means]


def training(groups: Sequence[Group], styles: Styles) -> Iterator[Picture]:
    """Yield a picture for each metric of training, with the updates of the reference, and one for the jumps."""
    for name, label in {**{f"train/{name}": label for name, label in CURVES.items()}, JUMP: ""}.items():
        if not any(points(run.metrics, name) for group in groups for run in group.runs):
            continue
        figure, axes = _axes()
        if name == JUMP:
            _jumps(axes, groups, styles)
            title, caption = (
                "Jump of the reward margin at an update",
                "Margin after the update less that before, on one batch.",
            )
        else:
            title, caption = label[0].upper() + label[1:], _curves(axes, name.removeprefix("train/"), groups, styles)
        axes.set(xlabel="optimizer step", xlim=(0, None))
        if sum(len(group.runs) for group in groups) > 1:
            _legend(figure, styles.handles())
        yield Picture(name.replace("/", "_"), title, caption, figure)


def _curves(axes: Any, name: str, groups: Sequence[Group], styles: Styles) -> str:
    """Draw a metric; return the caption."""
    [group, *others] = groups
    if not others and len(group.runs) == 1:
        [run] = group.runs
        draw(axes, run.metrics, name)
        mark(axes, _updates(run))
        return "Blue: training, smoothed (raw: pale). Orange, dashed: validation. Dotted: updates of the reference."
    for one in groups:
        _mean_curve(axes, name, one, styles(one))
    return "Training, smoothed, mean over seeds. Marks on a line: updates of the reference."


def _mean_curve(axes: Any, name: str, group: Group, style: dict[str, Any]) -> None:
    start = [(0, AT_START[name])] if name in AT_START else []
    curves = [smoothed([*start, *raw]) for run in group.runs if (raw := points(run.metrics, f"train/{name}"))]
    if not curves:
        return
    curve = _means(point for one in curves for point in one)
    updates = _updates(group.runs[0])
    places = [max((i for i, step in enumerate(curve) if step <= update), default=0) for update in updates]
    shown = places if len(places) <= MOST_MARKS else []
    axes.plot([*curve], [*curve.values()], **style, markevery=shown, markersize=4.5, linewidth=1.4, alpha=0.85)


def _updates(run: Run) -> list[int]:
    return [step for step, _ in points(run.metrics, MARKED)]


def _jumps(axes: Any, groups: Sequence[Group], styles: Styles) -> None:
    axes.axhline(0, color="#999999", linewidth=0.8)
    for group in groups:
        jumps = _means(point for run in group.runs for point in points(run.metrics, JUMP))
        if jumps:
            axes.plot([*jumps], [*jumps.values()], **styles(group), markersize=4.5, linewidth=1, alpha=0.85)
    axes.set_ylabel("reward margin (mean per pair)")


def _means(values: Any) -> dict[int, float]:
    """Return the mean of the values of each step, in order."""
    by_step = groupby(sorted(values), key=lambda point: point[0])
    return {step: mean(value for _, value in some) for step, some in by_step}


def criteria(comparisons: Sequence[Comparison]) -> Picture | None:
    """Return the win rates of each criterion as bars; None if there are none."""
    found = [one for one in comparisons if one.win_rates["criteria"]]
    names = list(dict.fromkeys(name for one in found for name in one.win_rates["criteria"]))
    if not names:
        return None
    figure, axes = _axes(height=1.5 + 0.32 * len(names) * len(found))
    height = 0.8 / len(found)
    for i, one in enumerate(found):
        rates = [(place, rate) for place, name in enumerate(names) if (rate := one.win_rates["criteria"].get(name))]
        _bars(
            axes,
            [(place - 0.4 + (i + 0.5) * height, rate) for place, rate in rates],
            i,
            height,
            " over ".join(one.names),
        )
    axes.axvline(0.5, color="black", linewidth=0.8, linestyle="--")
    axes.set(xlim=(0, 1), xlabel="win rate (share)")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    if len(found) > 1:
        _legend(figure, axes.get_legend_handles_labels()[0])
    texts = "; ".join(" over ".join(one.names) for one in found)
    return Picture("criteria", "Win rate by criterion", f"{texts}. Bars with 95 % intervals over prompts.", figure)


def _bars(axes: Any, rates: Sequence[tuple[float, Row]], index: int, height: float, label: str) -> None:
    known = [(place, rate) for place, rate in rates if rate.get("win_rate") is not None]
    means = [Mean(rate["win_rate"], *(rate.get("interval") or (rate["win_rate"],) * 2)) for _, rate in known]
    errors = [[one.value - one.low for one in means], [one.high - one.value for one in means]]
    axes.barh([place for place, _ in known], [one.value for one in means], height * 0.9, xerr=errors, label=label,
              color=PALETTE[index % len(PALETTE)], hatch=HATCHES[index % len(HATCHES)], edgecolor="white",
              capsize=3, ecolor="#111111")  # fmt: skip


def _axes(height: float = SIZE[1]) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure: Callable[..., Any] = Figure
    made = figure(figsize=(SIZE[0], height), layout="constrained")
    axes = made.subplots()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return made, axes


def _legend(figure: Any, handles: Any) -> None:
    figure.legend(handles=[*handles], loc="outside lower center", ncols=2, frameon=False, fontsize=8)
