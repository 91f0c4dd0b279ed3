"""Runs that differ by their seeds alone, and what became of them."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lit_tr.evaluation.page.found import Row, Run
from lit_tr.evaluation.seeds import Mean, mean_of

NORMAL = 1.959964
"""Half the width of a 95 % interval, in standard errors."""
ASIDE = ("name", "logger", "ckpt_path", "weights_only", "trainer.default_root_dir", "trainer.logger")
"""Settings that do not change what a run learns; seeds, callbacks and what is displayed are others."""


@dataclass(frozen=True)
class Group:
    """Runs with one configuration and different seeds.

    Args:
        method: loss, reference and its update: one colour in all pictures.
        setting: beta, as text; empty if the loss has none.
        runs: the runs.
        kind: `frozen`, `soft`, `hard`, `adaptive` or another kind of reference update; empty if there is no reference.
    """

    method: str
    setting: str
    runs: Sequence[Run]
    kind: str = ""

    @property
    def label(self) -> str:
        """Method and setting."""
        return ", ".join(filter(None, (self.method, self.setting)))


@dataclass(frozen=True)
class Point:
    """A group at an optimizer step: figures with intervals over its seeds, or over prompts where there is one seed.

    Args:
        step: the optimizer step.
        seeds: how many runs were evaluated there.
        kl: divergence from the initial policy, in nats per response.
        quality: score or win rate.
    """

    step: int
    seeds: int
    kl: Mean
    quality: Mean


def grouped(runs: Sequence[Run]) -> list[Group]:
    """Return the groups of some runs; those of one name differ in settings, which the name then tells."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        key = json.dumps(dict(_settings(run.config)), sort_keys=True) if run.config else str(run.folder)
        found.setdefault(key, []).append(run)
    groups = [Group(*_described(some[0]), some, _kind(some[0])) for some in found.values()]
    return sorted(_told_apart(groups), key=lambda group: (group.method, _number(group.setting)))


def _settings(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the settings of a configuration that may change what a run learns, by their paths."""
    if (
        path.startswith(ASIDE)
        or path.endswith("seed")
        or path.startswith(("seed", "trainer.callbacks", "trainer.enable"))
    ):
        return
    if not isinstance(value, Mapping):
        yield path, value
        return
    for name, inner in value.items():
        yield from _settings(inner, f"{path}.{name}" if path else str(name))


def _described(run: Run) -> tuple[str, str]:
    model = _arguments(run.config.get("model"))
    if not model.get("loss"):
        return run.folder.resolve().name, ""
    loss, beta = _name(model["loss"]), _arguments(model["loss"]).get("beta")
    setting = "" if beta is None else f"beta {beta:g}"
    if not (update := run.config.get("update")):
        return f"{loss}, frozen reference" if _kind(run) else loss, setting
    named = {"alpha": "alpha", "last_alpha": "to", "max_kl": "max_kl", "every_n_steps": "every"}
    given = [f"{text} {value:g}" for name, text in named.items() if (value := _arguments(update).get(name))]
    return f"TR-{loss}, {_kind(run)} ({', '.join(given)})", setting


def _kind(run: Run) -> str:
    if update := run.config.get("update"):
        return _name(update).removesuffix("ReferenceUpdate").lower()
    return "frozen" if _arguments(run.config.get("model")).get("reference") else ""


def _name(part: Any) -> str:
    """Return the short name of a class in a configuration."""
    return str(part["class_path"] if isinstance(part, Mapping) else part).rsplit(".", 1)[-1]


def _arguments(part: Any) -> Mapping[str, Any]:
    return part.get("init_args", part) or {} if isinstance(part, Mapping) else {}


def _told_apart(groups: list[Group]) -> Iterator[Group]:
    """Yield the groups, with the settings by which those of one label differ in their methods."""
    for group in groups:
        alike = [dict(_settings(one.runs[0].config)) for one in groups if one.label == group.label]
        own = dict(_settings(group.runs[0].config))
        differing = [path for path in own if any(one.get(path) != own[path] for one in alike)]
        told = "".join(f", {path.removeprefix('model.init_args.')} {own[path]}" for path in differing)
        yield replace(group, method=group.method + told)


def _number(setting: str) -> float:
    return float(setting.removeprefix("beta ") or 0)


def evaluations(run: Run) -> dict[int, Row]:
    """Return the evaluations of a run's policy by step, the initial policy at 0; of one step the last figures count."""
    found: dict[int, Row] = {}
    for row in run.evaluations:
        if row.get("label", "policy") in ("policy", "initial"):
            step = 0 if row.get("label") == "initial" else row["step"]
            found[step] = {**found.get(step, {}), **_with_kl(row)}
    return dict(sorted(found.items()))


def points(group: Group, quality: str) -> list[Point]:
    """Return the points of a group at which both the divergence and a quality, `score` or `win_rate`, are known."""
    rows = common(group, "kl", quality)
    return [Point(step, len(some), measured(some, "kl"), measured(some, quality)) for step, some in rows.items()]


def common(group: Group, *names: str) -> dict[int, list[Row]]:
    """Return the evaluations with some figures, by the steps that all seeds of a group have reached with them."""
    paths = [
        {step: row for step, row in evaluations(run).items() if all(row.get(name) is not None for name in names)}
        for run in group.runs
    ]
    steps = set.intersection(*map(set, known)) if (known := [path for path in paths if path]) else set()
    return {step: [path[step] for path in known] for step in sorted(steps)}


def behind(group: Group) -> list[Run]:
    """Return the runs whose evaluations end before those of another seed."""
    last = [max(evaluations(run), default=0) for run in group.runs]
    return [run for run, step in zip(group.runs, last, strict=True) if step < max(last)]


def _with_kl(row: Row) -> Row:
    """Return an evaluation whose `kl` is the exact one, or else the mean log-ratio; the initial policy's is 0."""
    if row.get("kl") is not None:
        return row
    if row.get("label") == "initial":
        return {**row, "kl": 0.0, "kl_standard_error": 0.0}
    estimate, error = row.get("kl_log_ratio"), row.get("kl_log_ratio_standard_error")
    return row if estimate is None else {**row, "kl": estimate, "kl_standard_error": error}


def measured(rows: Sequence[Row], name: str) -> Mean:
    """Return the mean of a figure over seeds; of one seed the figure, and its interval over prompts."""
    if len(rows) > 1:
        return mean_of([row[name] for row in rows])
    [row] = rows
    if row.get(f"{name}_interval"):
        return Mean(row[name], *row[f"{name}_interval"])
    half = NORMAL * error if (error := row.get(f"{name}_standard_error")) is not None else math.nan
    return Mean(row[name], row[name] - half, row[name] + half)
