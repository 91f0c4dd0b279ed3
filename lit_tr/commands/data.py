"""`lit-tr data inspect`: show what `fit` would train on; `lit-tr data formats`: list the formats of rows."""

import inspect as signatures
import json
import math
import sys
from io import TextIOWrapper
from pathlib import Path
from textwrap import fill
from typing import Any

from jsonargparse import SUPPRESS, ActionConfigFile, ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from lit_tr.commands.configs import with_shipped
from lit_tr.commands.parsing import parsed
from lit_tr.data import PreferenceDataModule
from lit_tr.data.cache import TokenCache
from lit_tr.data.datamodule import Data
from lit_tr.data.formats import FORMATS
from lit_tr.data.inspection import FirstRows
from lit_tr.data.inspection_report import Report, draw
from lit_tr.errors import UserError
from lit_tr.losses import Loss
from lit_tr.module import PreferenceModule

WIDTH = 80
"""Columns of a terminal, or of a file."""

MOST_CLOSING = 5
"""Brackets and a comma that may follow a value in its line."""

OF_A_STREAM = 10_000
"""Rows of a stream that are shown where nobody says how many: it may be endless."""

DESCRIPTION = """Show what `lit-tr fit` would train on: `lit-tr data inspect rows.jsonl --tokenizer DIR`, or with the
options of `fit`, `--config run.yaml`. All rows are tokenized, into the cache that `fit` uses; no model is loaded."""


def run(args: list[str]) -> None:
    """Run a verb of `lit-tr data`."""
    verb, *args = args or ["--help"]
    if verb in ("-h", "--help"):
        print(__doc__)
        return
    if verb not in VERBS:
        raise UserError(f"`lit-tr data` has no verb {verb!r}: take `lit-tr data inspect` or `lit-tr data formats`")
    if isinstance(sys.stdout, TextIOWrapper):  # a character that cannot be written is written as its number
        sys.stdout.reconfigure(errors="backslashreplace")
    VERBS[verb](args)


def inspect(args: list[str]) -> None:
    """Print what would be trained on, and draw the lengths."""
    options = parsed(parser(), with_shipped(args))
    if getattr(rank_zero_only, "rank", 0) != 0:
        return
    data, console = data_module(options), Console()
    folder = Path(options.output or options.trainer.default_root_dir or ".")
    caches: dict[str, TokenCache] = {}
    for name, source in data.sources.items():
        if source is None or (name == "test" and source is data.sources["val"]):
            continue
        caches[name] = data.cached(name, max_bad_rows=math.inf)
        report = Report(name, data, source, caches[name], console)
        report.print(caches.get("train") if name != "train" else None, options.examples)
        if report.lengths is not None:
            plot = folder / f"lengths.{name}.png"
            draw(name, report.lengths, data.max_length, plot)
            console.print(f"The lengths are drawn in {plot}", soft_wrap=True, highlight=False)


def parser() -> ArgumentParser:
    """Return the parser of `inspect`: the options of `data`; those of `fit` for the rest are taken and not used."""
    made = ArgumentParser(prog="lit-tr data inspect", description=DESCRIPTION, exit_on_error=False)
    made.add_argument("path", nargs="?", type=str, help="rows of training: a file, a folder, a hub id")
    made.add_argument("--tokenizer", type=str, help="folder or hub id; by default the one of model.policy.path")
    made.add_argument(
        "--rows",
        type=PositiveInt,
        help=f"show so many rows alone, the first; with data.buffer by default {OF_A_STREAM:,}",
    )
    made.add_argument("--examples", type=NonNegativeInt, default=3, help="how many examples to show")
    made.add_argument("--output", type=str, help="folder of the pictures; by default trainer.default_root_dir")
    made.add_argument("--config", action=ActionConfigFile, help="options of `fit` as YAML, or a shipped configuration")
    made.add_function_arguments(_data, "data", fail_untyped=False)
    made.add_subclass_arguments(PreferenceModule, "model", required=False, instantiate=False, help=SUPPRESS)
    for name in [
        *("seed_everything", "update", "name", "logger", "ckpt_path", "weights_only", "on_conflict"),
        *(f"trainer.{name}" for name in signatures.signature(Trainer).parameters),
    ]:
        made.add_argument(f"--{name}", type=Any, help=SUPPRESS)
    return made


def data_module(options: Namespace) -> PreferenceDataModule:
    """Return the data module of some options.

    Raises:
        UserError: there are no rows or no tokenizer.
    """
    given = options.data
    given.train = options.path or given.train
    given.tokenizer = options.tokenizer or given.tokenizer or _policy_path(options.model)
    given.mismatched = given.mismatched or _mismatched(options.model)
    if not (given.train or given.val or given.test):
        raise UserError("no rows are given: `lit-tr data inspect rows.jsonl --tokenizer DIR`, or `--config run.yaml`")
    if not given.tokenizer:
        raise UserError("no tokenizer is given: `--tokenizer DIR`, or a `--config` with model.policy.path")
    made = _data(**vars(parser().instantiate(Namespace(data=given)).data))
    rows = {name: options.rows for name in made.sources}
    if made.buffer and not options.rows:
        rows["train"] = OF_A_STREAM
    first = {
        name: FirstRows(source, count) for name, source in made.sources.items() if source and (count := rows[name])
    }
    made.sources |= first
    return made


def _data(
    train: Data | None = None,
    tokenizer: str | None = None,
    val: Data | None = None,
    test: Data | None = None,
    **options: Any,
) -> PreferenceDataModule:
    """Rows, tokenizer and options, as for `lit-tr fit`.

    Args:
        train: rows to train on: a path, a hub id, or a source by `class_path`.
        tokenizer: folder or hub id of the tokenizer.
        val: rows to validate on.
        test: rows to test on.
        options: the other arguments of `PreferenceDataModule`.
    """
    return PreferenceDataModule(tokenizer, train=train, val=val, test=test, **options)  # type: ignore[arg-type]


def _policy_path(model: Namespace | None) -> str | None:
    policy = model and model.init_args.get("policy")
    return policy.get("path") if isinstance(policy, Namespace) else policy


def _mismatched(model: Namespace | None) -> bool:
    loss = model.init_args.get("loss") if model else None
    if not loss:
        return False
    made = ArgumentParser(exit_on_error=False)
    made.add_subclass_arguments(Loss, "loss")
    return made.instantiate(Namespace(loss=loss)).loss.mismatched


def formats(args: list[str]) -> None:
    """List the formats of rows, with an example row of each."""
    made = ArgumentParser(prog="lit-tr data formats", description=formats.__doc__, exit_on_error=False)
    made.parse_args(args)
    for one in FORMATS:
        print(fill(f"{one.name}: {', '.join(one.columns)}", WIDTH, subsequent_indent="    ", break_on_hyphens=False))
        print(fill(one.meaning, WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))
        print(f"  {_folded(dict(one.row), 2, 2)}\n")


def _folded(value: Any, margin: int, used: int) -> str:
    """Return JSON, one item to a line where a line would pass `WIDTH`.

    Args:
        value: plain data.
        margin: where the line begins that it stands in.
        used: characters before it in that line.
    """
    text = json.dumps(value, ensure_ascii=False)
    if used + len(text) < WIDTH - MOST_CLOSING or not isinstance(value, list | dict):
        return text
    margin += 2
    if isinstance(value, list):
        parts = [_folded(item, margin, margin) for item in value]
    else:
        names = {name: f"{json.dumps(name, ensure_ascii=False)}: " for name in value}
        parts = [before + _folded(value[name], margin, margin + len(before)) for name, before in names.items()]
    line = "\n" + " " * margin
    return text[0] + line + f",{line}".join(parts) + text[-1]


VERBS = {"inspect": inspect, "formats": formats}
