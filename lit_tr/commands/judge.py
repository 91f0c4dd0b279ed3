"""`lit-tr judge`: win rates of one policy's responses against another's."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lit_tr.commands.judges import Chosen, add_judges, chosen
from lit_tr.commands.parsing import PlainParser
from lit_tr.console.terminal import console, is_live
from lit_tr.errors import UserError
from lit_tr.evaluation.alpaca_eval import published
from lit_tr.evaluation.comparison import (
    JUDGEMENTS,
    Comparison,
    as_json,
    compare,
    of_annotations,
    of_judgements,
    save,
)
from lit_tr.evaluation.judges.templates import copy_prompts
from lit_tr.evaluation.win_rate_table import PERCENT, print_difference, print_win_rates

DESCRIPTION = "Win rates of the responses in A against those in B, by a judge; or of judgements that are there already."
EPILOG = """examples:
  lit-tr judge a.jsonl b.jsonl --model gpt-4.1 --criteria overall coherence
  lit-tr judge a.jsonl b.jsonl --url http://127.0.0.1:8000/v1 --model NAME
  lit-tr judge a.jsonl b.jsonl --reward-model FOLDER
  lit-tr judge a.jsonl b.jsonl --judge lit_tr.embedded.task.GoldReward
  lit-tr judge --annotations annotations.json
"""


def run(args: list[str]) -> None:
    """Judge, print win rates and write them."""
    options = _parser().parse_args(args)
    if options.copy_prompts:
        folder = copy_prompts(options.copy_prompts)
        print(f"Prompts and criteria are in {folder}: change them, and give their paths to --prompt and --criteria")
        return
    _check(options)
    if options.files:
        _judge(options)
    else:
        found = of_annotations(options.annotations) if options.annotations else of_judgements(options.judgements)
        _tell(found, options, {}, options.output)


def _judge(options: argparse.Namespace) -> None:
    output = options.output or "-vs-".join(Path(file).stem for file in options.files)
    judges = chosen(options, Path(output))
    with _progress(judges):
        comparison = compare(options.files[0], options.files[1], judges.by_criterion, options.repeat)
    _tell(comparison, options, {"asked": judges.spent()}, output)
    for line in judges.remarks():
        print(f"- {line}")


def _tell(comparison: Comparison, options: argparse.Namespace, more: dict[str, Any], output: str | None) -> None:
    """Write and print the figures."""
    rates, shown = comparison.win_rates(), console()
    told = as_json(comparison, rates) | {key: value for key, value in more.items() if value}
    if options.minus:
        other = _other(options.minus)
        told["minus"] = {"file": options.minus, "criteria": comparison.less(other)}
    if output:
        save(comparison, told, output)
    print_win_rates(comparison, rates, shown)
    if options.minus:
        print_difference(told["minus"]["criteria"], comparison.a.name, other.a.name, shown)
    if options.annotations:
        one = rates["overall"]
        print(f"- win rate {PERCENT * one.win_rate:.6f}, standard error {PERCENT * (one.standard_error or 0):.6f}")
    if options.alpaca_eval:
        _published(options.annotations)
    if output:
        print(f"- judgements and win rates are in {output}")


def _published(path: str) -> None:
    try:
        figures = published(path)
    except UserError as error:  # the other figures stand
        print(f"- {error}")
        return
    rate, spread = figures["length_controlled_winrate"], figures["lc_standard_error"]
    print(f"- AlpacaEval's own length-controlled win rate: {rate:.6f} (standard error {spread:.6f})")


def _other(path: str) -> Comparison:
    """Return a comparison to take the difference from: of `lit-tr judge`, or of annotations."""
    is_ours = Path(path).is_dir() or Path(path).name == JUDGEMENTS
    return of_judgements(path) if is_ours else of_annotations(path)


def _check(options: argparse.Namespace) -> None:
    given = [bool(options.files), bool(options.annotations), bool(options.judgements)]
    if sum(given) != 1 or len(options.files) not in (0, 2):
        raise UserError(
            "give two files of responses, or --annotations FILE, or --judgements FOLDER: `lit-tr judge a.jsonl b.jsonl "
            "--model NAME`; `lit-tr judge --help` lists the options"
        )
    if options.alpaca_eval and not options.annotations:
        raise UserError("--alpaca-eval: it needs --annotations, a file that AlpacaEval wrote")


@contextmanager
def _progress(judges: Chosen) -> Iterator[None]:
    """Show on a terminal how many questions are answered."""
    shown = Console(stderr=True)
    if not judges.askers or not is_live(shown):
        yield
        return
    with Progress(TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=shown) as bar:
        task = bar.add_task("answers", total=None)
        for asker in judges.askers:
            asker.watch = lambda more: bar.advance(task, more)
        yield


def _parser() -> argparse.ArgumentParser:
    made = PlainParser(
        prog="lit-tr judge",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("files", nargs="*", metavar="A B", help="files of responses, as `lit-tr generate` writes them")
    made.add_argument("--annotations", metavar="FILE", help="read AlpacaEval's annotations in the place of judging")
    made.add_argument("--judgements", metavar="FOLDER", help="read what this command wrote in the place of judging")
    made.add_argument("--output", metavar="FOLDER", help="where to write; by default A-vs-B if there is judging")
    made.add_argument(
        "--minus",
        metavar="OTHER",
        help="also the difference from another run on the same prompts: folder or annotations",
    )
    made.add_argument(
        "--alpaca-eval", action="store_true", help="with --annotations: AlpacaEval's own length-controlled win rate"
    )
    made.add_argument("--copy-prompts", metavar="FOLDER", help="copy prompts and criteria to a new folder, and end")
    add_judges(made)
    return made
