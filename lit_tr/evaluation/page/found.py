"""What there is to report, found in folders of runs by the names and first lines of files."""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any

from lit_tr.errors import UserError, explained
from lit_tr.evaluation.evaluations import EVALUATIONS, ROUNDS
from lit_tr.evaluation.responses import holds_responses

Row = dict[str, Any]
METRICS, WIN_RATES, JUDGEMENTS, SCORES = "metrics.csv", "win_rates.json", "judgements.jsonl", "scores.json"
OF_ROUNDS = ("held_out.jsonl", "held_out.reward.jsonl", "held_out.truth.jsonl")
"""Files of rounds that are shown: of those of one response, the scores of the last."""
JUDGED = ("id", "prompt", "criterion", "response_a", "response_b", "preference")
"""What a judgement has."""


@dataclass(frozen=True)
class Run:
    """A training run.

    Args:
        folder: its folder.
        config: of its `config.yaml`; empty if there is none.
        metrics: rows of its `metrics.csv`, as text.
        evaluations: lines of its `evaluation.jsonl`.
    """

    folder: Path
    config: Row = field(default_factory=dict)
    metrics: Sequence[dict[str, str]] = ()
    evaluations: Sequence[Row] = ()


@dataclass(frozen=True)
class Comparison:
    """What `lit-tr judge` left: win rates of policy A over policy B, and the judgements behind them."""

    folder: Path
    win_rates: Row
    judgements: Sequence[Row] = ()

    @property
    def names(self) -> tuple[str, str]:
        """The names of the two policies."""
        return self.win_rates["a"]["name"], self.win_rates["b"]["name"]


@dataclass(frozen=True)
class Scored:
    """What `lit-tr score --against` left: the mean scores of policies by a reward and by another one."""

    folder: Path
    scores: Row


@dataclass(frozen=True)
class Found:
    """All that a report is made of."""

    runs: Sequence[Run] = ()
    comparisons: Sequence[Comparison] = ()
    responses: dict[str, list[Row]] = field(default_factory=dict)
    """Rows of responses by the name of their policy."""
    scores: Sequence[Scored] = ()


def find(folders: Iterable[str | Path]) -> Found:
    """Return what lies in some folders and in the folders below them.

    Raises:
        UserError: a folder is not there or holds nothing to report, or a file in it cannot be read.
    """
    given = [Path(folder) for folder in folders]
    for folder in given:
        if not folder.is_dir():
            raise UserError(f"RUN {folder}: there is no such folder")
    files = {folder: list(_files(folder)) for folder in given}
    for folder, paths in files.items():
        if not paths:
            raise UserError(
                f"RUN {folder}: neither a run nor judgements nor responses are in it or below it; give the folder that "
                f"`lit-tr fit`, `lit-tr judge` or `lit-tr generate` wrote, with {METRICS}, {EVALUATIONS}, {WIN_RATES}, "
                f"{SCORES} or responses in JSON lines"
            )
    every = {path.resolve(): path for paths in files.values() for path in paths}.values()
    rounds = [path.parent for path in every if path.name == ROUNDS]
    once = [path for path in every if not {*rounds} & {*path.parents}]
    runs = dict.fromkeys(path.parent for path in once if path.name in (METRICS, EVALUATIONS))
    judged = [path for path in once if path.name == WIN_RATES]
    shown = [path for folder in rounds for name in OF_ROUNDS for path in sorted(folder.glob(f"round_*/{name}"))]
    found = [*(_rounds(one) for one in rounds), *(_run(one) for one in runs)]
    scores = [made for path in once if path.name == SCORES and (made := _scored(path)).scores.get("against")]
    return Found(found, [_comparison(one) for one in judged], _by_policy([*shown, *once]), scores)


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files below a folder that a report reads."""
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".csv", ".json", ".jsonl")):
        if path.name in (METRICS, EVALUATIONS, ROUNDS, WIN_RATES, SCORES) or holds_responses(path):
            yield path


def _run(folder: Path) -> Run:
    metrics, config, evaluations = (folder / name for name in (METRICS, "config.yaml", EVALUATIONS))
    return Run(
        folder,
        _config(config) if config.exists() else {},
        _csv(metrics) if metrics.exists() else [],
        list(json_lines(evaluations, "step")) if evaluations.exists() else [],
    )


def _rounds(folder: Path) -> Run:
    """Return the rounds of `lit-tr iterate` as one run: its curves are those of one training behind the other."""
    options, metrics = json.loads((folder / ROUNDS).read_text()), list[dict[str, str]]()
    for number in count(1):
        if not (files := sorted((folder / f"round_{number}/training").glob(f"*/{METRICS}"))):
            break
        start = 1 + max((int(row["step"]) for row in metrics), default=-1)
        metrics += [{**row, "step": str(start + int(row["step"]))} for row in _csv(files[-1])]  # gone on with, whole
    fit = options.pop("fit")
    return replace(_run(folder), config={**options, **fit}, metrics=metrics)


def _config(path: Path) -> Row:
    import yaml  # type: ignore[import-untyped]

    with explained(f"{path}: it cannot be read as YAML", yaml.YAMLError):
        return yaml.safe_load(path.read_text()) or {}


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _comparison(path: Path) -> Comparison:
    with explained(f"{path}: it is not what `lit-tr judge` writes", json.JSONDecodeError, KeyError, TypeError):
        made = Comparison(path.parent, json.loads(path.read_text()))
        _ = made.names, made.win_rates["criteria"].items()
    judgements = path.parent / JUDGEMENTS
    return Comparison(path.parent, made.win_rates, list(json_lines(judgements, *JUDGED)) if judgements.exists() else [])


def _scored(path: Path) -> Scored:
    with explained(f"{path}: it is not what `lit-tr score` writes", json.JSONDecodeError, KeyError, TypeError):
        made = Scored(path.parent, json.loads(path.read_text()))
        _ = made.scores["reward"], made.scores["policies"].items()
    return made


def _by_policy(files: Iterable[Path]) -> dict[str, list[Row]]:
    """Return responses by the name of their policy, with that of the folder where it stands in several folders."""
    named: dict[tuple[str, Path], list[Row]] = {}
    for path in files:
        for number, row in enumerate(json_lines(path, "prompt", "response")) if holds_responses(path) else ():
            named.setdefault((row.get("policy", path.stem), path.parent), []).append({"id": str(number), **row})
    names = [name for name, _ in named]
    return {name if names.count(name) == 1 else f"{name} ({folder})": rows for (name, folder), rows in named.items()}


def json_lines(path: Path, *needed: str) -> Iterator[Row]:
    """Yield the objects of a file of JSON lines; a last line that is torn, as of a run that goes on, is left out.

    Args:
        path: the file.
        needed: keys that each object must have.

    Raises:
        UserError: another line is not a JSON object, or lacks a key; it is named.
    """
    lines = path.read_text().split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                return
            raise UserError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: a JSON object is expected, not {type(row).__name__}")
        if missing := [key for key in needed if key not in row]:
            raise UserError(f"{path}, line {number}: there is no {missing[0]!r}; it has {', '.join(row)}")
        yield row
