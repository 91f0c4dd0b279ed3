"""`lit-tr score`: scores of responses by a reward, beside labels and beside another reward."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser
from rich.box import SIMPLE_HEAD
from rich.table import Table

from lit_tr.commands.mistakes import say
from lit_tr.commands.parsing import parsed
from lit_tr.console.terminal import console
from lit_tr.data.datamodule import Data
from lit_tr.errors import UserError, explained
from lit_tr.evaluation.agreement import Agreement, agreement, mean_scores, rank_correlations
from lit_tr.evaluation.page.found import SCORES
from lit_tr.evaluation.scored import PAIR, Responses, open_responses, scored
from lit_tr.evaluation.win_rate_table import figure
from lit_tr.rewards import Reward, Scorer, as_scorer

DESCRIPTION = """Score responses by a reward: `lit-tr score responses/*.jsonl --reward lit_tr.rewards.WhiteBox`.
FILES are responses, as `lit-tr generate` writes them, of one or more policies; or one file, folder or hub id of
preferences. Lines with scores and features are written to OUTPUT/NAME.jsonl for each policy, those of preferences to
chosen.jsonl and rejected.jsonl, and the figures to OUTPUT/scores.json."""
REWARD = """what scores: a function (prompt, response) -> score or a scorer, by its import path or by class_path with
init_args; --reward.NAME sets its arguments"""
FIT = """a file: fit the reward to these responses and write its statistics there, for --reward.fitted of later calls"""


def run(args: list[str]) -> None:
    """Score as the options say."""
    made = parser()
    options = made.instantiate(parsed(made, args))
    sources = [*options.files, *([options.data] if options.data else [])]
    if not sources:
        raise UserError("give files of responses, or of preferences: `lit-tr score FILE --reward NAME`")
    responses, scorer = open_responses(sources, options.max_bad_rows), as_scorer(options.reward)
    if responses.bad.found:
        bad = responses.bad
        say(f"left out {len(bad.found)} rows: {bad.reasons}; the first is {bad.found[0]}")
    if options.fit:
        _fit(scorer, responses, options.fit)
    ours = scored(responses, scorer)
    other = as_scorer(options.against) if options.against else None
    theirs = scored(responses, other) if other else None
    figures = _figures(scorer, ours, other, theirs)
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
    chosen, rejected = (ours.by_policy.get(name, ()) for name in PAIR)
    if chosen and [one.key for one in chosen] == [one.key for one in rejected]:
        agreed = agreement(chosen, rejected)
        found["agreement"] = agreed and asdict(agreed)
    if other and theirs:
        found["against"] = {"reward": other.name, "policies": mean_scores(theirs)}
        found["spearman"] = rank_correlations(ours, theirs)
    return found


def _write(responses: Responses, figures: Mapping[str, Any], folder: Path) -> None:
    with explained(f"{folder}: it cannot be written", OSError):
        folder.mkdir(parents=True, exist_ok=True)
        for name, those in responses.by_policy.items():
            file = folder / (re.sub(r"[^\w.-]+", "--", name) + ".jsonl")
            partial = file.with_suffix(".partial")  # for the file may be one of those that were read
            partial.write_text("".join(f"{replace(one, policy=name).line()}\n" for one in those))
            partial.replace(file)
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
    for line in _remarks(figures):
        shown.print(f"- {line}", soft_wrap=True, markup=False)


def _mean(one: Mapping[str, Any]) -> str:
    error = one.get("standard_error")
    return "-" if "mean" not in one else f"{one['mean']:.3f}" + ("" if error is None else f" ± {error:.3f}")


def _remarks(figures: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the figures say beside the means."""
    for side in (figures, *([figures["against"]] if "against" in figures else [])):
        if unscored := sum(one["unscored"] for one in side["policies"].values()):
            yield f"{unscored} responses have no score by {side['reward']}; they are left out"
    if found := figures.get("agreement"):
        one = Agreement(**found)
        yield f"the reward prefers the chosen response in {figure(one.agreement, one.interval)} % of {one.pairs} pairs"
        yield (
            f"calibration error of sigmoid(difference): {one.calibration_error:.3f}; divided by the temperature "
            f"{one.temperature:.3g}, fitted to these pairs, {one.calibration_error_at_temperature:.3f}"
        )
    for name, one in figures.get("spearman", {}).items():
        if one["rho"] is not None:
            yield f"Spearman's rank correlation of the two rewards over {one['count']} {name}: {one['rho']:.3f}"
