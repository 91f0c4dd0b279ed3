"""Rewards beside another one, such as the gold reward: mean scores of policies, and how they order them."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_tr.evaluation.curves import MARKERS, PALETTE
from lit_tr.evaluation.page.found import Row, Run, Scored
from lit_tr.evaluation.page.groups import evaluations, measured
from lit_tr.evaluation.page.pictures import SIZE, Picture, legend, new_axes
from lit_tr.evaluation.page.tables import ABSENT, Cell, Table
from lit_tr.evaluation.seeds import mean_of

TRUTH = {"color": "#222222", "linewidth": 2.4, "marker": "D", "markersize": 5}
COLORS = [one for one in PALETTE if one != TRUTH["color"]]
MOST_NAMES = 16
"""Policies whose names stand below the axis."""


def over_rounds(runs: Sequence[Run]) -> list[Picture]:
    """Return a picture of each run of rounds that have a proxy and the truth: their mean scores, each on its axis."""
    known = ({step: row for step, row in evaluations(run).items() if {"score", "proxy"} <= {*row}} for run in runs)
    drawn = [(run.folder.resolve().name, rows) for run, rows in zip(runs, known, strict=True) if rows]
    return [_rounds(f"rounds_{i}", name, rows) for i, (name, rows) in enumerate(drawn, start=1)]


def _rounds(name: str, folder: str, rows: Mapping[int, Row]) -> Picture:
    figure, axes = new_axes()
    beside = axes.twinx()
    beside.spines["top"].set_visible(False)
    ours: dict[str, Any] = {"color": COLORS[0], "linewidth": 1.1, "marker": MARKERS[0], "markersize": 4}
    truth = _with_bars(axes, rows, "score", "truth", TRUTH)
    proxy = _with_bars(beside, rows, "proxy", "reward that makes the pairs (right axis)", ours)
    axes.set(xlabel="round", ylabel="mean score by the truth", xticks=[*rows])
    beside.set_ylabel("mean score by the reward", color=COLORS[0])
    title = f"{folder}: reward and truth over the rounds"
    if (first := next((step for step, row in rows.items() if row.get("exploited")), None)) is not None:
        axes.axvline(first, color="#999999", linestyle=":", zorder=0)
        title = f"{folder}: the reward is exploited from round {first} on"
    legend(figure, [truth, proxy])
    caption = (
        "Mean scores of held-out responses with 95 % intervals over prompts, by the reward that the rounds train on "
        "and by the truth, which they do not see. The reward is exploited where it rises and the truth falls in one "
        "round, both by more than two standard errors: a dotted line."
    )
    return Picture(name, title, caption, figure)


def _with_bars(axes: Any, rows: Mapping[int, Row], name: str, label: str, style: Mapping[str, Any]) -> Any:
    """Draw a figure of rounds with its intervals; return its entry in the legend."""
    means = [measured([row], name) for row in rows.values()]
    bars = [[one.value - one.low for one in means], [one.high - one.value for one in means]]
    return axes.errorbar([*rows], [one.value for one in means], bars, label=label, elinewidth=1, capsize=2, **style)


def together(scores: Sequence[Scored]) -> dict[str, list[Scored]]:
    """Return what compares rewards with the same scores of another one, by the name of the folder that it lies in."""
    found: dict[str, list[Scored]] = {}
    for one in scores:
        found.setdefault(json.dumps(one.scores["against"], sort_keys=True), []).append(one)
    folders = [some[0].folder.resolve().parent for some in found.values()]
    names = [folder.name for folder in folders]
    return {
        name if names.count(name) == 1 else str(folder): some
        for name, folder, some in zip(names, folders, found.values(), strict=True)
    }


def curves(sets: Mapping[str, Sequence[Scored]]) -> list[Picture]:
    """Return a picture of each set: the mean scores of its policies by the rewards and by the other one."""
    return [_picture(f"proxies_{i}", name, some) for i, (name, some) in enumerate(sets.items(), start=1)]


def _picture(name: str, folder: str, some: Sequence[Scored]) -> Picture:
    truth = some[0].scores["against"]
    figure, axes = new_axes(height=SIZE[1] + 0.17 * len(some) + 0.8)  # a legend of long lines, and slanting names
    axes.plot(_standardised(truth), label=truth["reward"], **TRUTH)
    for i, one in enumerate(some):
        style: dict[str, Any] = {"color": COLORS[i % len(COLORS)], "marker": MARKERS[i % len(MARKERS)]}
        label = f"{_label(one)}: ρ {_text(_rho(one))}"
        axes.plot(_standardised(one.scores), label=label, linewidth=1.1, markersize=4, **style)
    policies = list(truth["policies"])
    axes.set(xlabel="policies, in the order in which they were given", ylabel="mean score, standardised")
    if len(policies) <= MOST_NAMES:
        axes.set_xticks(range(len(policies)), policies, rotation=40, ha="right", fontsize=6.5)
    legend(figure, axes.get_legend_handles_labels()[0])
    caption = (
        f"Mean scores of {len(policies)} policies, each reward's standardised over the policies. ρ is Spearman's rank "
        f"correlation with {truth['reward']}: a proxy that does as it does has the same ups and downs."
    )
    return Picture(name, f"{folder}: rewards beside {truth['reward']}", caption, figure)


def correlations(sets: Mapping[str, Sequence[Scored]]) -> Table | None:
    """Return Spearman's correlation of each reward in each set, and the mean where there are several; None of none."""
    if not sets:
        return None
    rhos = {name: {_label(one): _rho(one) for one in some} for name, some in sets.items()}
    labels = dict.fromkeys(label for known in rhos.values() for label in known)
    rows = [_row(label, [known.get(label) for known in rhos.values()]) for label in labels]
    caption = (
        "Spearman's rank correlation over policies, of their mean scores by the reward and by the one that it is "
        "compared with."
    )
    if len(sets) > 1:
        caption += f" Each column is a set of policies; the mean has its 95 % interval over {len(sets)} sets."
    return Table("proxies", ["reward", *rhos, *(["mean"] if len(sets) > 1 else [])], rows, caption)


def _row(label: str, rhos: Sequence[float | None]) -> list[Cell]:
    cells = [Cell(label), *(Cell(_text(rho), rho) for rho in rhos)]
    if len(rhos) > 1:
        known = [rho for rho in rhos if rho is not None]
        mean = mean_of(known) if len(known) > 1 else None
        cells.append(Cell(f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]", mean.value) if mean else Cell(ABSENT))
    return cells


def _label(one: Scored) -> str:
    return f"{one.scores['reward']}, {one.folder.resolve().name}"


def _rho(one: Scored) -> float | None:
    return one.scores["spearman"]["policies"]["rho"]


def _text(rho: float | None) -> str:
    return ABSENT if rho is None else f"{rho:.2f}"


def _standardised(scores: Row) -> Any:
    """Return the mean scores of the policies, less their mean, over their standard deviation, `(policies,)`."""
    means = np.array([one.get("mean", np.nan) for one in scores["policies"].values()])
    return (means - np.nanmean(means)) / (np.nanstd(means) or 1.0)
