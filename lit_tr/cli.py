"""`lit-tr`: the LightningCLI of PreferenceModule and PreferenceDataModule."""

import json
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_warn

from lit_tr.callbacks import ReferenceUpdate
from lit_tr.data.datamodule import PreferenceDataModule
from lit_tr.errors import UserError
from lit_tr.module import PreferenceModule


class GracefulInterrupt(Callback):
    """Lets Ctrl-C take effect between two optimizer steps, so that the checkpoint it leaves is whole.

    The first Ctrl-C waits for the step that is running; a second one does not.
    """

    def __init__(self) -> None:
        self._asked = False
        self._before: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Listen for Ctrl-C."""
        self._before = signal.signal(signal.SIGINT, self._ask)

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        """Stop if Ctrl-C was pressed and the batch ended an optimizer step."""
        if self._asked and not trainer.fit_loop._should_accumulate():
            raise KeyboardInterrupt

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the signal back."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print("\nStopping after this step; press Ctrl-C again to stop at once.", file=sys.stderr)


class LitTRCLI(LightningCLI):
    """LightningCLI with the links and the reference update of lit_tr."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `update`, the callback that moves the reference, and name the model only once."""
        parser.add_lightning_class_args(ReferenceUpdate, "update", subclass_mode=True, required=False)
        parser.link_arguments("model.policy.path", "data.tokenizer")
        parser.link_arguments("model", "data.mismatched", compute_fn=_needs_mismatched, apply_on="instantiate")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and let `--ckpt_path last` be the newest `last.ckpt` below the run's root folder."""
        super().parse_arguments(parser, args)
        config: Any = self.config.get(self.config.get("subcommand")) or {}
        path = config.get("ckpt_path")
        if path == "last":
            config["ckpt_path"] = _last_checkpoint(Path(config.trainer.default_root_dir or "."))
        elif path and "://" not in path and not Path(path).exists():
            raise UserError(f"--ckpt_path: there is no checkpoint {path}")

    def _parse_ckpt_path(self) -> None:
        before = _flat(self.config)
        super()._parse_ckpt_path()
        for key, value in _flat(self.config).items():
            if key in before and before[key] != value:
                rank_zero_warn(
                    f"{key}: the configuration says {before[key]!r}, and the checkpoint's {value!r} is taken"
                )

    def after_instantiate_classes(self) -> None:
        """Keep the model's configuration in its checkpoints, so that `load_from_checkpoint` can build it again."""
        self._dump_config()
        self.model.save_hyperparameters({**self.config_dump["model"], "_instantiator": _INSTANTIATOR}, logger=False)

    def predict(self, **kwargs: Any) -> None:
        """Predict, and leave a line for each batch in `predictions.jsonl` in the run's folder."""
        batches: Any = self.trainer.predict(**kwargs) or []
        path = Path(self.trainer.log_dir or self.trainer.default_root_dir) / "predictions.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            file.writelines(
                json.dumps({name: value.tolist() for name, value in batch.items()}) + "\n" for batch in batches
            )
        print(f"Predictions are in {path}")

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        given = [callback for callback in callbacks if callback is not None]  # `update: null` is no callback
        return super()._instantiate_trainer(config, [*given, GracefulInterrupt()])


_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"

EXPECTED_WARNINGS = (
    r"Found \d+ module\(s\) in eval mode",  # the references
    "Precision bf16-mixed is not supported by the model summary",
    "'set_vital' is deprecated",  # torchdata 0.11 with torch 2.13
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.13
)


def main(args: ArgsType = None) -> None:
    """Run `lit-tr`; a user's mistake ends it with one message and exit code 2."""
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    try:
        LitTRCLI(
            PreferenceModule,
            PreferenceDataModule,
            auto_configure_optimizers=False,
            save_config_kwargs={"overwrite": True},
            args=args,
        )
    except (ValueError, MisconfigurationException) as error:
        if (mistake := _users_mistake(error)) is None:
            raise
        print(f"lit-tr: {mistake}", file=sys.stderr)
        sys.exit(2)


def _users_mistake(error: BaseException | None) -> BaseException | None:
    """Return the user's mistake that an error is or comes from; parsers wrap what a class raises."""
    while error is not None and not isinstance(error, (UserError, MisconfigurationException)):
        error = error.__cause__ or error.__context__
    return error


def _needs_mismatched(model: PreferenceModule) -> bool:
    return model.loss.mismatched


def _last_checkpoint(root: Path) -> str:
    found = sorted(root.rglob("last*.ckpt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"--ckpt_path last: there is no last.ckpt below {root} (trainer.default_root_dir)")
    return str(found[-1])


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
