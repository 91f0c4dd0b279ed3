"""`lit-tr data inspect`: what `fit` would train on."""

import argparse
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from lit_tr.commands.fit import configured
from lit_tr.data.inspection import draw, inspect, report
from lit_tr.errors import UserError


def run(args: list[str]) -> None:
    """Print what would be trained on, and draw the lengths."""
    verb, *args = args or [""]
    if verb != "inspect":
        raise UserError("`lit-tr data` has one verb: `lit-tr data inspect --config ...`")
    own = argparse.ArgumentParser(
        prog="lit-tr data inspect",
        description="Say what `lit-tr fit` with the same options would train on, without a model; all rows are read.",
        epilog="All other options are those of `lit-tr fit`.",
    )
    own.add_argument("--examples", type=int, default=3, help="how many examples to show")
    own.add_argument("--output", type=Path, help="folder of the pictures; default: trainer.default_root_dir")
    options, others = own.parse_known_args(args)
    cli = configured(others)
    if getattr(rank_zero_only, "rank", 0) != 0:
        return
    data, console = cli.datamodule, Console()
    order = data.seed if data.buffer and data.shuffle else None
    folder = options.output or Path(cli.config.trainer.default_root_dir or ".")
    for name, source in data.sources.items():
        if source is None or (name == "test" and source is data.sources["val"]):
            continue
        found = inspect(name, source, data.intake(name), options.examples, order if name == "train" else None)
        report(found, source, data.tokenizer, data.on_bad_row == "raise", console)
        if found.examples:
            draw(found, data.max_length, folder / f"lengths.{name}.png")
            console.print(f"The lengths are drawn in {folder / f'lengths.{name}.png'}", soft_wrap=True)
