"""`lit-tr plan`: estimate the memory and time of `fit`."""

import argparse

import torch
from rich.console import Console

from lit_tr.commands.fit import configured
from lit_tr.commands.parsing import PlainParser, option_names
from lit_tr.planning.answers import Asked, answer
from lit_tr.planning.configured import planned_run
from lit_tr.planning.plan import parse_bytes
from lit_tr.planning.ranks import Network
from lit_tr.planning.report import progress, report


def run(args: list[str]) -> None:
    """Print the plan of a run."""
    own = _parser()
    options, others = own.parse_known_args(args)
    network = Network(options.link, options.network, options.node)
    given = options.memory and parse_bytes(options.memory)
    try:
        cli = configured(others)
    except argparse.ArgumentError as error:
        error.options = [*getattr(error, "options", ()), *option_names(own.format_help())]  # type: ignore[attr-defined]
        raise
    trainer, log_initial = cli.config.trainer, cli.config.model.init_args.get("log_initial")
    memory, device = (given, None) if given or trainer.accelerator == "cpu" else _device()
    asked = Asked(memory, options.devices, options.flops, options.rows, network, device)
    planned = planned_run(cli.model, trainer, log_initial, asked.devices, cli.callbacks)
    with progress() as say:
        found = answer(planned, cli.datamodule, trainer, asked, say)
    report(found, Console())


def _device() -> tuple[int | None, str | None]:
    """Return the memory and the name of this machine's first CUDA device, if it has one."""
    if not torch.cuda.is_available():
        return None, None
    found = torch.cuda.get_device_properties(0)
    return found.total_memory, found.name


def _parser() -> argparse.ArgumentParser:
    own = PlainParser(
        prog="lit-tr plan",
        description="Estimate memory and time of `lit-tr fit` with the same options; no weights are read.",
        epilog="All other options are those of `lit-tr fit`.",
    )
    own.add_argument(
        "--memory",
        type=str,
        help="memory of a device, such as 80GiB: does it fit, and the largest pack; default: that of this machine's "
        "first CUDA device, if it has one",
    )
    own.add_argument("--devices", type=int, help="number of devices; default: trainer.devices")
    own.add_argument("--flops", type=float, help="FLOP/s that a device achieves, such as 4e14, for the hours")
    own.add_argument("--rows", type=int, help="examples to train on; default: counted, if they are on this machine")
    fast = Network()
    own.add_argument("--link", type=float, default=fast.link, help="bytes/s a device sends in its node; %(default)g")
    own.add_argument("--network", type=float, default=fast.network, help="bytes/s it sends to others; %(default)g")
    own.add_argument("--node", type=int, default=fast.node, help="devices in a node; %(default)s")
    return own
