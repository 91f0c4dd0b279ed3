"""`lit-tr score`: scores of responses by a reward, beside labels and beside another reward."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser
from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from lit_tr.commands.configs import with_shipped
from lit_tr.commands.mistakes import say
from lit_tr.commands.parsing import parsed
from lit_tr.console.terminal import console
from lit_tr.data.datamodule import Data
from lit_tr.errors import UserError, explained
from lit_tr.evaluation.agreement import Agreement, agreement, mean_scores, rank_correlations
from lit_tr.evaluation.labels import explain_labels
from lit_tr.evaluation.page.found import SCORES
from lit_tr.evaluation.responses import Response, write_whole
from lit_tr.evaluation.scored import PAIR, Responses, open_responses, scored, scored_together
from lit_tr.evaluation.win_rate_table import figure
from lit_tr.rewards import Reward, Scorer, as_scorer

PAIRS = "pairs.jsonl"
DESCRIPTION = """Score responses by a reward: `lit-tr score responses/*.jsonl --reward lit_tr.rewards.WhiteBox`.
FILES are responses, as `lit-tr generate` writes them, of one or more policies; or one file, folder or hub id of
preferences. Lines with scores and features are written to OUTPUT/NAME.jsonl for each policy, those of preferences to
chosen.jsonl and rejected.jsonl, and side by side to pairs.jsonl; the figures to OUTPUT/scores.json."""
REWARD = """what scores: a function (prompt, response) -> score or a scorer, by its import path or by class_path with
init_args; --reward.NAME sets its arguments"""
FIT = """a file: fit the reward to these responses and write its statistics there, for --reward.fitted of later calls"""
CALIBRATE = """other preferences, as FILES or --data: their temperature calibrates those that are scored, and how far
the reward agrees with their labels stands beside, such as in the distribution that it was made for, and out of it"""
EXPLAIN = """which features of the reward explain the labels of preferences, each alone and all in a regression"""


def run(args: list[str]) -> None:
    """Score as the options say."""
    made = parser()
    options = made.instantiate(parsed(made, with_shipped(args)))
    sources = [*options.files, *([options.data] if options.data else [])]
    if not sources:
        raise UserError("give files of responses, or of preferences: `lit-tr score FILE --reward NAME`")
    responses, scorer = open_responses(sources, options.max_bad_rows), as_scorer(options.reward)
    parts = [responses]
    if options.calibrate_on:
        parts.append(open_responses([options.calibrate_on], options.max_bad_rows))
    for bad in (part.bad for part in parts if part.bad.found):
        say(f"left out {len(bad.found)} rows: {bad.reasons}; the first is {bad.found[0]}")
    if options.fit:
        _fit(scorer, responses, options.fit)
    ours, *calibration = scored_together(parts, scorer)
    other = as_scorer(options.against) if options.against else None
    theirs = scored(responses, other) if other else None
    figures = _figures(scorer, ours, other, theirs)
    for one in calibration:
        figures |= _calibrated(ours, one, str(options.calibrate_on))
    if options.explain_labels:
        if not _pairs(ours):
            raise UserError("--explain_labels: these are no preferences, with a chosen and a rejected response")
        figures["labels"] = asdict(explain_labels(*zip(*_pairs(ours), strict=True)))
    _write(ours, figures, Path(options.output))
    _print(figures)
    print(f"- scored responses and {SCORES} are in {options.output}")


def parser() -> ArgumentParser:
    """Return the parser of the verb."""
    made = ArgumentParser(prog="lit-tr score", description=DESCRIPTION, exit_on_error=False)
    made.add_argument("files", nargs="*", type=str, default=[], metavar="FILES", help="what is scored; see above")
    made.add_argument("--config", action=ActionConfigFile, help="options as YAML")
    made.add_argument("--data", type=Data | None, help="preferences in the place of FILES, as --data.val of fit")
    made.add_argument("--reward", type=Reward, required=True, help=REWARD)
    made.add_argument("--against", type=Reward | None, help="another reward, to be compared with")
    made.add_argument("--fit", type=str | None, help=FIT)
    made.add_argument("--calibrate_on", type=Data | None, help=CALIBRATE)
    made.add_argument("--explain_labels", action="store_true", help=EXPLAIN)
    made.add_argument("--output", type=str, default="scores", help="a folder; default: %(default)s")
    made.add_argument("--max_bad_rows", type=float, default=0.01, help="rows that are no pair: a share, or a count")
    return made


def _fit(scorer: Any, responses: Responses, path: str) -> None:
    if not hasattr(scorer, "fit"):
        raise UserError(f"--fit {path}: {scorer.name} takes no statistics of a sample; leave it out")
    scorer.fit([one.candidate for one in responses.all]).save(path)


def _figures(scorer: Scorer, ours: Responses, other: Scorer | None, theirs: Responses | None) -> dict[str, Any]:
    """Return names and figures as plain data."""
    found: dict[str, Any] = {"reward": scorer.name, "policies": mean_scores(ours)}
    if _pairs(ours):
        agreed = _agreement(ours)
        found["agreement"] = agreed and asdict(agreed)
    if other and theirs:
        found["against"] = {"reward": other.name, "policies": mean_scores(theirs)}
        found["spearman"] = rank_correlations(ours, theirs)
    return found


def _calibrated(ours: Responses, other: Responses, name: str) -> dict[str, Any]:
    """Return the agreement at the temperature of other preferences, and that of those.

    Raises:
        UserError: there are no pairs with scores on one side.
    """
    at = _agreement(other)
    found = at and _agreement(ours, at.temperature)
    if not at or not found:
        raise UserError(
            f"--calibrate_on {name}: preferences are calibrated on preferences, and one side has no pair with scores"
        )
    return {"agreement": asdict(found), "calibrated_on": asdict(at) | {"source": name}}


def _agreement(responses: Responses, temperature: float | None = None) -> Agreement | None:
    chosen, rejected = zip(*pairs, strict=True) if (pairs := _pairs(responses)) else ((), ())
    return agreement(chosen, rejected, temperature)


def _pairs(responses: Responses) -> list[tuple[Response, Response]]:
    """Return the chosen and the rejected response of each pair; empty where the responses are no preferences."""
    chosen, rejected = (responses.by_policy.get(name, ()) for name in PAIR)
    is_paired = [one.key for one in chosen] == [one.key for one in rejected]
    return list(zip(chosen, rejected, strict=True)) if is_paired else []


def _row(chosen: Response, rejected: Response) -> dict[str, Any]:
    """Return a pair as a row for training, with columns NAME_chosen and NAME_rejected of score and features."""
    row: dict[str, Any] = {"prompt": chosen.prompt, "chosen": chosen.response, "rejected": rejected.response}
    for side, one in zip(PAIR, (chosen, rejected), strict=True):
        known = {"score": one.score, **(one.features or {})}
        row |= {f"{name}_{side}": value for name, value in known.items() if value is not None}
    return row


def _write(responses: Responses, figures: Mapping[str, Any], folder: Path) -> None:
    with explained(f"{folder}: it cannot be written", OSError):
        folder.mkdir(parents=True, exist_ok=True)
        for name, those in responses.by_policy.items():
            lines = (f"{replace(one, policy=name).line()}\n" for one in those)
            write_whole(folder / (re.sub(r"[^\w.-]+", "--", name) + ".jsonl"), "".join(lines))
        if pairs := _pairs(responses):
            rows = (f"{json.dumps(_row(*pair), ensure_ascii=False)}\n" for pair in pairs)
            write_whole(folder / PAIRS, "".join(rows))
        (folder / SCORES).write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n")


def _print(figures: Mapping[str, Any]) -> None:
    shown, against = console(), figures.get("against")
    table = Table("", "responses", f"score by {figures['reward']}", box=SIMPLE_HEAD)
    if against:
        table.add_column(f"by {against['reward']}")
    for name, one in figures["policies"].items():
        others = [_mean(against["policies"][name])] if against else []
        table.add_row(name, str(one["responses"]), _mean(one), *others)
    shown.print(table)
    shown.print("Means, with standard errors over prompts", soft_wrap=True)
    if labels := figures.get("labels"):
        shown.print(_explained(labels))
    for line in _remarks(figures):
        shown.print(f"- {line}", soft_wrap=True, markup=False)


def _explained(labels: Mapping[str, Any]) -> Table:
    table = Table("labels explained by", "chosen has more of it, %", "weight", "pairs", box=SIMPLE_HEAD)
    for name, one in labels["features"].items():
        weight = f"{one['weight']:.3f} ± {one['standard_error']:.3f}"
        table.add_row(escape(name), figure(one["agreement"], one["interval"]), weight, str(one["pairs"]))
    return table


def _mean(one: Mapping[str, Any]) -> str:
    error = one.get("standard_error")
    return "-" if "mean" not in one else f"{one['mean']:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _remarks(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the figures say beside the means."""
    for side in (figures, *([figures["against"]] if "against" in figures else [])):
        if unscored := sum(one["unscored"] for one in side["policies"].values()):
            yield f"{unscored} responses have no score by {side['reward']}; they are left out"
    if found := figures.get("agreement"):
        one, other = Agreement(**found), figures.get("calibrated_on")
        yield f"the reward prefers the chosen response in {figure(one.agreement, one.interval)} % of {one.pairs} pairs"
        if other:
            agrees = figure(other["agreement"], other["interval"])
            yield f"and in {agrees} % of the {other['pairs']} pairs of {other['source']}"
        yield (
            f"calibration error of sigmoid(difference): {one.calibration_error:.3f}; divided by the temperature "
            f"{one.temperature:.3g}, fitted to {'those' if other else 'these'} pairs, "
            f"{one.calibration_error_at_temperature:.3f}"
        )
    if (labels := figures.get("labels")) and labels["accuracy"] is not None:
        accuracy = figure(labels["accuracy"], labels["interval"])
        yield f"all features together prefer the chosen response in {accuracy} % of held-out pairs"
    for name, one in figures.get("spearman", {}).items():
        if one["rho"] is not None:
            yield f"Spearman's rank correlation of the two rewards over {one['count']} {name}: {one['rho']:.3f}"
