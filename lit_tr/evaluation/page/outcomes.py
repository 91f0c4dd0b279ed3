"""Pictures of what came out: quality against distance, and win rates by criterion."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lit_tr.evaluation.best_of_n import BestOfN
from lit_tr.evaluation.curves import PALETTE
from lit_tr.evaluation.page.found import Comparison, Row
from lit_tr.evaluation.page.groups import Group, Point
from lit_tr.evaluation.page.pictures import LINES, OTHERS, Picture, Styles, legend, new_axes
from lit_tr.evaluation.seeds import Mean

HATCHES = ("", "///", "...", "xxx")
"""Hatches of bars, so that they can be told in grey."""
PLACES = (((-5, 6), "right"), ((5, -12), "left"), ((-5, -12), "right"), ((5, 6), "left"))
"""Where the numbers of a line stand beside its points, in printer's points, so that those of other lines do not."""
LABELS = {"score": "score (mean over prompts)", "win_rate": "win rate against the initial policy (share)"}


class Steered(NamedTuple):
    """A policy that was steered while it was sampled: by how much, its divergence, and its score."""

    strength: float
    kl: Mean
    score: Mean


def frontier(
    quality: str,
    found: dict[str, list[Point]],
    groups: Sequence[Group],
    styles: Styles,
    best: Sequence[BestOfN],
    steered: Mapping[str, Sequence[Steered]],
) -> Picture:
    """Return quality against the square root of the divergence: a path of training for each group, and the best of N.

    Args:
        quality: `score` or `win_rate`.
        found: the points of each group, by its label.
        groups: the groups.
        styles: of the groups.
        best: the frontier of the initial policy; empty if it is not known.
        steered: steered policies, by the policy that they are steered towards.
    """
    figure, axes = new_axes()
    for group in groups:
        _path(axes, found[group.label], styles(group))
    lines = list(_steered(axes, steered))
    if best:
        roots, scores = [one.kl**0.5 for one in best], [one.score for one in best]
        axes.plot(roots, [one.value for one in scores], color="#555555", linewidth=1.2, linestyle=(0, (1, 1)), zorder=1)
        axes.fill_between(roots, *_ends(scores), color="#555555", alpha=0.12, linewidth=0)
        axes.annotate(f"best of {best[-1].n}", (roots[-1], scores[-1].value), (0, 5), textcoords="offset points",
                      ha="center", fontsize=8, color="#333333")  # fmt: skip
    axes.set(xlabel="√KL to the initial policy (√nats per response)", ylabel=LABELS[quality], xlim=(0, None))
    legend(figure, [*styles.handles(), *lines])
    line = (
        " Numbers are strengths of steering, 1 the trained policy, at the start of a line 0; bars are intervals over "
        "prompts."
        if steered
        else ""
    )
    line += (
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
    roots = [_root(point.kl) for point in found]
    qualities = [point.quality for point in found]
    values = [[one.value for one in side] for side in (roots, qualities)]
    axes.plot(*values, **style, linewidth=1.1, markersize=3.5, alpha=0.75)
    bars = {name: style[name] for name in ("color", "marker")}
    axes.errorbar(values[0][-1], values[1][-1], _errors(qualities[-1]), _errors(roots[-1]), **bars, markersize=8,
                  linewidth=1.2, capsize=2.5, markeredgecolor="white")  # fmt: skip


def _steered(axes: Any, steered: Mapping[str, Sequence[Steered]]) -> Iterator[Any]:
    """Draw steered policies, with their strengths, and yield the entries of a legend."""
    from matplotlib.patheffects import withStroke

    halo = withStroke(linewidth=2, foreground="white")
    for number, (name, path) in enumerate(steered.items()):
        sides = [[_root(one.kl) for one in path], [one.score for one in path]]
        values = [[one.value for one in side] for side in sides]
        across, up = ([[one.value - one.low for one in side], [one.high - one.value for one in side]] for side in sides)
        style = OTHERS[-1 - number % len(OTHERS)]
        yield axes.errorbar(*values, up, across, label=f"{name}, steered", color=style["color"],
                            marker="P", linestyle=LINES[1], linewidth=1.1, capsize=2.5)  # fmt: skip
        offset, side = PLACES[number % len(PLACES)]
        for one, *place in zip(path, *values, strict=True):
            if one.strength:
                axes.annotate(f"{one.strength:g}", place, offset, textcoords="offset points", fontsize=7, ha=side,
                              path_effects=[halo], zorder=5)  # fmt: skip


def _root(one: Mean) -> Mean:
    return Mean(*(max(end, 0.0) ** 0.5 for end in one))


def _errors(one: Mean) -> list[list[float]]:
    """Return the lengths of the bars below and above a mean, as matplotlib takes them."""
    return [[one.value - one.low], [one.high - one.value]]


def _ends(means: Sequence[Mean]) -> tuple[list[float], list[float]]:
    return [one.low for one in means], [one.high for one in means]


def criteria(comparisons: Sequence[Comparison]) -> Picture | None:
    """Return the win rates of each criterion as bars; None if there are none."""
    found = [one for one in comparisons if one.win_rates["criteria"]]
    names = list(dict.fromkeys(name for one in found for name in one.win_rates["criteria"]))
    if not names:
        return None
    figure, axes = new_axes(height=1.5 + 0.32 * len(names) * len(found))
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
        legend(figure, axes.get_legend_handles_labels()[0])
    texts = "; ".join(" over ".join(one.names) for one in found)
    return Picture("criteria", "Win rate by criterion", f"{texts}. Bars with 95 % intervals over prompts.", figure)


def _bars(axes: Any, rates: Sequence[tuple[float, Row]], index: int, height: float, label: str) -> None:
    known = [(place, rate) for place, rate in rates if rate.get("win_rate") is not None]
    means = [Mean(rate["win_rate"], *(rate.get("interval") or (rate["win_rate"],) * 2)) for _, rate in known]
    errors = [[one.value - one.low for one in means], [one.high - one.value for one in means]]
    axes.barh([place for place, _ in known], [one.value for one in means], height * 0.9, xerr=errors, label=label,
              color=PALETTE[index % len(PALETTE)], hatch=HATCHES[index % len(HATCHES)], edgecolor="white",
              capsize=3, ecolor="#111111")  # fmt: skip
