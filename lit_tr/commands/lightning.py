"""`lit-tr`: the LightningCLI of PreferenceModule and PreferenceDataModule, and `export` beside its verbs."""

import argparse
import json
import os
import pickle
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast
from zipfile import is_zipfile

from jsonargparse import ArgumentParser, Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from rich.console import Console

from lit_tr.commands.export import export
from lit_tr.commands.interrupt import GracefulInterrupt
from lit_tr.data.datamodule import PreferenceDataModule
from lit_tr.data.inspection import draw, inspect, report
from lit_tr.errors import UserError
from lit_tr.module import PreferenceModule
from lit_tr.planning.plan import parse_bytes
from lit_tr.planning.report import Asked, planned_run
from lit_tr.planning.report import report as plan_report
from lit_tr.updates import ReferenceUpdate


class LitTRCLI(LightningCLI):
    """LightningCLI with the links and the reference update of lit_tr."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `update`, the callback that moves the reference, and name the model only once."""
        parser.add_lightning_class_args(ReferenceUpdate, "update", subclass_mode=True, required=False)
        parser.link_arguments("model.policy.path", "data.tokenizer")
        parser.link_arguments("model", "data.mismatched", compute_fn=_needs_mismatched, apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and let `--ckpt_path last` be the newest checkpoint below the run's root folder."""
        super().parse_arguments(parser, args)
        config: Any = self.config.get(self.config.get("subcommand")) or {}
        path = config.get("ckpt_path")
        if path == "last":
            config["ckpt_path"] = _last_checkpoint(Path(config.trainer.default_root_dir or "."))
        elif path and ":" not in path and path not in ("best", "hpc"):
            if not Path(path).exists():
                raise UserError(f"--ckpt_path: there is no checkpoint {path}")
            if not _is_whole(Path(path)):
                raise UserError(f"--ckpt_path: {path} is no checkpoint, or was cut short when it was written")

    def _parse_ckpt_path(self) -> None:
        before = _flat(self.config)
        try:
            super()._parse_ckpt_path()
        except (pickle.UnpicklingError, EOFError) as error:
            raise UserError(f"--ckpt_path: this is no checkpoint ({error})") from error
        for key, value in _flat(self.config).items():
            if key in before and before[key] != value:
                rank_zero_warn(
                    f"{key}: the configuration says {before[key]!r}, and the checkpoint's {value!r} is taken; "
                    "to go on with another value, export the policy and start a new run from it"
                )

    def after_instantiate_classes(self) -> None:
        """Keep the model's configuration in its checkpoints, so that `load_from_checkpoint` can build it again."""
        self._dump_config()
        self.model.save_hyperparameters({**self.config_dump["model"], "_instantiator": _INSTANTIATOR}, logger=False)

    def predict(self, **kwargs: Any) -> None:
        """Predict; each rank leaves a line for each of its batches in `predictions.RANK.jsonl` in the run's folder."""
        batches: Any = self.trainer.predict(**kwargs) or []
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        path = folder / f"predictions.{self.trainer.global_rank}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            file.writelines(
                json.dumps({name: value.tolist() for name, value in batch.items()}) + "\n" for batch in batches
            )
        print(f"Predictions are in {path}")

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if config["logger"] in (None, True):  # Lightning's own choice depends on what else is installed
            config["logger"] = CSVLogger(config["default_root_dir"] or ".", name="lightning_logs")
        if config["enable_checkpointing"] is not False and not _has_checkpoint(config["callbacks"]):
            callbacks = [*callbacks, ModelCheckpoint(save_last=True, save_on_exception=True)]
        given = [callback for callback in callbacks if callback is not None]  # `update: null` is no callback
        return super()._instantiate_trainer(config, [*given, GracefulInterrupt()])


CLOCKS = 1.0
"""Seconds that the clocks of machines may differ by which write one checkpoint."""
_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"

EXPECTED_WARNINGS = (
    "LightningCLI's args parameter is intended to run from within Python",
    r"Found \d+ module\(s\) in eval mode",  # the references
    "Precision bf16-mixed is not supported by the model summary",
    r"It is recommended to use `self\.log\('(val|test)/",  # the means are those of all ranks already
    "'set_vital' is deprecated",  # torchdata 0.11 with torch 2.13
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.13
)


def main(args: ArgsType = None) -> None:
    """Run `lit-tr`; a user's mistake ends it with one message and exit code 2.

    With LIT_TR_TRACEBACK set in the environment, it ends with a traceback.
    """
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    given = sys.argv[1:] if args is None else args
    try:
        if isinstance(given, list) and given[:1] == ["export"]:
            _export(given[1:])
        elif isinstance(given, list) and given[:1] == ["plan"]:
            _plan(given[1:])
        elif isinstance(given, list) and given[:1] == ["data"]:
            if given[1:2] != ["inspect"]:
                raise UserError("`lit-tr data` has one verb: `lit-tr data inspect --config ...`")
            _inspect(given[2:])
        else:
            _lightning(args)
    except (ValueError, ImportError, MisconfigurationException) as error:
        if os.environ.get("LIT_TR_TRACEBACK"):
            raise
        mistake = _users_mistake(error)
        hint = "" if mistake else " (for the place in the code, set LIT_TR_TRACEBACK=1)"
        print(f"lit-tr: {mistake or error}{hint}", file=sys.stderr)
        sys.exit(2)


def _lightning(args: ArgsType) -> None:
    LitTRCLI(
        PreferenceModule,
        PreferenceDataModule,
        auto_configure_optimizers=False,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={
            "epilog": "Three verbs more: `lit-tr plan` says what memory and time training would take, `lit-tr data "
            "inspect` what would be trained on; `lit-tr export` makes a Hugging Face folder of a checkpoint."
        },
        args=args,
    )


class _DataCLI(LitTRCLI):
    """Takes what `fit` takes, and makes neither a trainer nor weights."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        super().add_arguments_to_parser(parser)
        parser.add_method_arguments(Trainer, "fit", skip=set(self.subcommands()["fit"]))

    def instantiate_classes(self) -> None:
        made = self.parser.instantiate(Namespace(model=self.config.model, data=self.config.data))
        self.model, self.datamodule, self.trainer = made.model, made.data, cast(Any, None)


def _inspect(args: list[str]) -> None:
    own = argparse.ArgumentParser(
        prog="lit-tr data inspect",
        description="Say what `lit-tr fit` with the same options would train on, without a model; all rows are read.",
        epilog="All other options are those of `lit-tr fit`.",
    )
    own.add_argument("--examples", type=int, default=3, help="how many examples to show")
    own.add_argument("--output", type=Path, help="folder of the pictures; default: trainer.default_root_dir")
    options, others = own.parse_known_args(args)
    cli = _configured(others)
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


def _plan(args: list[str]) -> None:
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
    cli = _configured(others)
    run = planned_run(cli.model, cli.config.trainer, cli.config.model.log_initial, asked.devices)
    plan_report(run, cli.datamodule, cli.config.trainer, asked, Console())


def _configured(args: list[str]) -> _DataCLI:
    return _DataCLI(
        PreferenceModule,
        PreferenceDataModule,
        run=False,
        auto_configure_optimizers=False,
        save_config_callback=None,
        args=args,
    )


def _export(args: list[str]) -> None:
    parser = ArgumentParser(prog="lit-tr export", description=(export.__doc__ or "").partition("\n")[0])
    parser.add_function_arguments(export, as_group=False, skip={"merge"})
    parser.add_argument("--merge", action="store_true", help="add the adapter to its base and write a full model")
    folder = export(**parser.parse_args(args))
    print(f"The model is in {folder}")


def _has_checkpoint(callbacks: Any) -> bool:
    listed = callbacks if isinstance(callbacks, list) else [callbacks]
    return any(isinstance(callback, Checkpoint) for callback in listed)


def _users_mistake(error: BaseException | None) -> BaseException | None:
    """Return the user's mistake that an error is or comes from; parsers wrap what a class raises."""
    while error is not None and not isinstance(error, (UserError, MisconfigurationException)):
        error = error.__cause__ or error.__context__
    return error


def _needs_mismatched(model: PreferenceModule) -> bool:
    return model.loss.mismatched


def _last_checkpoint(root: Path) -> str:
    """Return the newest checkpoint below a folder; one that a kill has cut short is passed over, with a warning."""
    for path in sorted(root.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True):
        if _is_whole(path):
            return str(path)
        rank_zero_warn(f"{path} was cut short when it was written; an older checkpoint is looked for")
    raise UserError(f"--ckpt_path last: there is no whole checkpoint below {root} (trainer.default_root_dir)")


def _is_whole(path: Path) -> bool:
    """Whether a checkpoint was written to its end: a file ends with its table of contents, a folder with meta.pt.

    Lightning writes a folder's shards, then what says where they are, then meta.pt; over an older checkpoint too, whose
    files stay until then.
    """
    if not path.is_dir():
        return is_zipfile(path)
    named = [path / "meta.pt", path / ".metadata", *path.glob("*.distcp")]
    if not all(one.exists() for one in named):
        return False
    last, table, *shards = (one.stat().st_mtime for one in named)
    return last >= table and all(table > shard - CLOCKS for shard in shards)


def _flat(config: Any) -> dict[str, Any]:
    def leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
        if hasattr(value, "as_dict"):
            value = value.as_dict()
        if isinstance(value, dict):
            for key, item in value.items():
                yield from leaves(item, f"{path}.{key}" if path else str(key))
        else:
            yield path, value

    return dict(leaves(config, ""))


if __name__ == "__main__":
    main()
