"""`lit-tr data inspect`: show what `fit` would train on."""

import argparse
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from lit_tr.commands.fit import configured
from lit_tr.data.inspection import draw, inspect, report
from lit_tr.errors import UserError


def run(args: list[str]) -> None:
    """Print what would be trained on, and plot the lengths."""
    verb, *args = args or [""]
    if verb != "inspect":
        raise UserError("`lit-tr data` has one verb: `lit-tr data inspect --config ...`")
    own = argparse.ArgumentParser(
        prog="lit-tr data inspect",
        description="Show what `lit-tr fit` with the same options would train on, without a model; all rows are read.",
        epilog="All other options are those of `lit-tr fit`.",
    )
    own.add_argument("--examples", type=int, default=3, help="how many examples to show")
    own.add_argument("--output", type=Path, help="folder of the plots; default: trainer.default_root_dir")
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
        inspection = inspect(name, source, data.intake(name), options.examples, order if name == "train" else None)
        report(inspection, source, data.tokenizer, data.on_bad_row == "raise", console)
        if inspection.examples:
            plot = folder / f"lengths.{name}.png"
            draw(inspection, data.max_length, plot)
            console.print(f"The lengths are drawn in {plot}", soft_wrap=True)
