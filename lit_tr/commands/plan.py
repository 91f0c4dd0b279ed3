"""`lit-tr plan`: the memory and time that `fit` would take."""

import argparse

from rich.console import Console

from lit_tr.commands.fit import configured
from lit_tr.planning.plan import parse_bytes
from lit_tr.planning.report import Asked, planned_run, report


def run(args: list[str]) -> None:
    """Print the plan of a run."""
    own = argparse.ArgumentParser(
        prog="lit-tr plan",
        description="Say what memory `lit-tr fit` with the same options would take, and how long; no weights are read.",
        epilog="All other options are those of `lit-tr fit`.",
    )
    own.add_argument("--memory", type=str, help="memory of a device, 80GiB say: does it fit, and the largest pack")
    own.add_argument("--devices", type=int, help="number of devices; default: trainer.devices")
    own.add_argument("--flops", type=float, help="FLOP/s that a device achieves, 4e14 say, for the hours")
    own.add_argument("--rows", type=int, help="examples to train on; default: counted, if they are on this machine")
    options, others = own.parse_known_args(args)
    asked = Asked(options.memory and parse_bytes(options.memory), options.devices, options.flops, options.rows)
    cli = configured(others)
    log_initial = cli.config.model.init_args.get("log_initial")
    report(
        planned_run(cli.model, cli.config.trainer, log_initial, asked.devices, cli.callbacks),
        cli.datamodule,
        cli.config.trainer,
        asked,
        Console(),
    )
