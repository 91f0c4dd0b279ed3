"""`lit-tr plan`: estimate the memory and time of `fit`."""

import argparse

from rich.console import Console

from lit_tr.commands.fit import configured
from lit_tr.planning.plan import parse_bytes
from lit_tr.planning.report import Asked, planned_run, report


def run(args: list[str]) -> None:
    """Print the plan of a run."""
    own = argparse.ArgumentParser(
        prog="lit-tr plan",
        description="Estimate memory and time of `lit-tr fit` with the same options; no weights are read.",
        epilog="All other options are those of `lit-tr fit`.",
    )
    own.add_argument("--memory", type=str, help="memory of a device, such as 80GiB: does it fit, and the largest pack")
    own.add_argument("--devices", type=int, help="number of devices; default: trainer.devices")
    own.add_argument("--flops", type=float, help="FLOP/s that a device achieves, such as 4e14, for the hours")
    own.add_argument("--rows", type=int, help="examples to train on; default: counted, if they are on this machine")
    options, others = own.parse_known_args(args)
    asked = Asked(options.memory and parse_bytes(options.memory), options.devices, options.flops, options.rows)
    cli = configured(others)
    trainer, log_initial = cli.config.trainer, cli.config.model.init_args.get("log_initial")
    planned = planned_run(cli.model, trainer, log_initial, asked.devices, cli.callbacks)
    report(planned, cli.datamodule, trainer, asked, Console())
