"""`lit-tr fit`, `validate`, `test`, `predict`: the LightningCLI of PreferenceModule and PreferenceDataModule."""

import json
import time
from argparse import ArgumentError
from pathlib import Path
from typing import Any, Literal, cast

from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger

from lit_tr.commands.configs import with_shipped
from lit_tr.commands.help import page
from lit_tr.commands.interrupt import GracefulInterrupt
from lit_tr.commands.mistakes import say, unwritable
from lit_tr.commands.parsing import option_names
from lit_tr.commands.resume import ConfiguredOptimizer, resumed
from lit_tr.commands.runs import RUNS, RunCheckpoint, WholeCurves, remove_empty, run_loggers, say_end
from lit_tr.commands.slurm import is_queued_again, job_folder
from lit_tr.data.datamodule import PreferenceDataModule
from lit_tr.errors import UserError
from lit_tr.evaluation.accuracy import PreferenceAccuracy
from lit_tr.hparams import INSTANTIATOR, arguments
from lit_tr.module import PreferenceModule
from lit_tr.policy.loading import PretrainedPolicy
from lit_tr.updates import ReferenceUpdate

NAME = "name of the run, which its folder bears beside the time"
LOGGER = "tensorboard, wandb or mlflow, or a list of them: log there as well as to the run's metrics.csv (csv)"
ON_CONFLICT = (
    "what to do if the configuration differs from the checkpoint of --ckpt_path: `error` stops with a list, `config` "
    "goes on with the configuration's values, `checkpoint` with the checkpoint's"
)


Tracker = Literal["csv", "tensorboard", "wandb", "mlflow"]


class SaveConfig(SaveConfigCallback):
    """Saves the configuration in the run's folder, once training starts, and in its checkpoints."""

    def setup(self, *args: Any, **kwargs: Any) -> None:
        """Save nothing yet: a start that fails leaves no folder."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the configuration, and give it to the loggers."""
        super().setup(trainer, pl_module, "fit")

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Log the configuration as hyper-parameters, where a logger shows them."""
        for logger in (one for one in trainer.loggers if not isinstance(one, CSVLogger)):
            logger.log_hyperparams(json.loads(self.parser.dump(self.config, skip_none=False, format="json")))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the configuration into a checkpoint, as plain data."""
        checkpoint["config"] = json.loads(self.parser.dump(self.config, skip_none=False, format="json"))


class LitTRCLI(LightningCLI):
    """LightningCLI with lit_tr's links, reference update and resume.

    The model is a PreferenceModule, or a subclass of it named by `--model` or `model.class_path`.
    """

    def __init__(self, *classes: Any, **options: Any) -> None:
        defaults = {"save_config_callback": SaveConfig, "save_config_kwargs": {"overwrite": True}}
        options = {"auto_configure_optimizers": False, **defaults, **options, "subclass_mode_model": True}
        self._follow_config = False
        self._made: str | None = None
        super().__init__(*(classes or (PreferenceModule, PreferenceDataModule)), **options)

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make a parser that raises its errors; `lit-tr` prints them in one message."""
        return super().init_parser(**{"exit_on_error": False, **kwargs})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add `update`, the callback that moves the reference, and link the data to the model."""
        parser.add_lightning_class_args(ReferenceUpdate, "update", subclass_mode=True, required=False)
        parser.link_arguments("model", "data.tokenizer", compute_fn=_tokenizer, apply_on="instantiate")
        parser.link_arguments("model", "data.mismatched", lambda model: model.loss.mismatched, apply_on="instantiate")
        parser.add_argument("--name", type=str | None, help=NAME)
        parser.add_argument("--logger", type=list[Tracker] | Tracker | None, help=LOGGER)
        parser.add_argument(
            "--on_conflict", type=Literal["error", "config", "checkpoint"], default="error", help=ON_CONFLICT
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse the options; an error knows which ones there are, so that its message can name the nearest."""
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            error.options = option_names(page("fit", RUN_OPTIONS))  # type: ignore[attr-defined]
            raise

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint, and resolve its differences from the configuration by `on_conflict`."""
        verb = self.config.get("subcommand")
        config = self.config[verb] if verb else self.config
        choice = config.pop("on_conflict")  # of this start only: not saved
        if verb == "fit" and is_queued_again(config.trainer.default_root_dir or RUNS):
            config.ckpt_path = "hpc"  # its own checkpoint is further than the one it began with
        if verb:
            self.config[verb], self._follow_config = resumed(self._parser(verb), config, verb, choice)

    def after_instantiate_classes(self) -> None:
        """Save the model's configuration in its checkpoints, for `load_from_checkpoint`."""
        kept = arguments(self.config_dump["model"])
        self.model.save_hyperparameters({**kept, "_instantiator": INSTANTIATOR}, logger=False)

    def predict(self, **kwargs: Any) -> None:
        """Predict; each rank writes one line per batch to `predictions.RANK.jsonl` in the run's folder."""
        batches: Any = self.trainer.predict(**kwargs) or []
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)
        path = folder / f"predictions.{self.trainer.global_rank}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w") as file:
            file.writelines(
                json.dumps({name: _plain(value) for name, value in batch.items()}) + "\n" for batch in batches
            )
        print(f"Predictions are in {path}")

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand != "fit" and not self.config[subcommand].ckpt_path:
            source = _tokenizer(self.model)
            say(f"no --ckpt_path is given: {subcommand} evaluates the policy of {source} as it is, untrained")
        started, complete = time.monotonic(), False
        try:
            super()._run_subcommand(subcommand)
            complete = True
        except Exception as error:
            if text := unwritable(error, self.trainer.default_root_dir):
                raise UserError(text) from error
            raise
        finally:
            if self._made and not complete and self.trainer.is_global_zero:
                remove_empty(self._made)
            if subcommand == "fit":
                say_end(self.trainer, time.monotonic() - started, complete)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if self.config.get("subcommand") == "fit" and (folder := job_folder(config["default_root_dir"] or RUNS)):
            config["default_root_dir"] = str(folder)
        if config["logger"] in (None, True):  # Lightning's own choice depends on what else is installed
            verb = self.config.get("subcommand")
            chosen = self.config[verb] if verb else self.config
            others = [chosen.logger] if isinstance(chosen.logger, str) else chosen.logger or []
            config["logger"] = run_loggers(config["default_root_dir"], chosen.name, others)
            self._made = config["logger"][0].log_dir
        given = [callback for callback in callbacks if callback is not None]  # `update: null`
        listed = config["callbacks"] if isinstance(config["callbacks"], list) else [config["callbacks"]]
        if config["enable_checkpointing"] is not False and not any(isinstance(one, Checkpoint) for one in listed):
            given.append(RunCheckpoint(save_last=True, save_on_exception=True))
        if self.config.get("subcommand") == "validate":
            given.append(PreferenceAccuracy())
        if self._follow_config:
            given.append(ConfiguredOptimizer())
        return super()._instantiate_trainer(config, [*given, GracefulInterrupt(), WholeCurves()])


class DataCLI(LitTRCLI):
    """Takes the options of `fit`, and makes neither a trainer nor weights."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the options of `fit`."""
        super().add_arguments_to_parser(parser)
        parser.add_method_arguments(Trainer, "fit", skip=set(self.subcommands()["fit"]))

    def instantiate_classes(self) -> None:
        """Make the module, the data module and the callbacks."""
        config = self.config
        made = self.parser.instantiate(Namespace(model=config.model, data=config.data, update=config["update"]))
        listed = ArgumentParser()
        listed.add_argument("--callbacks", type=list[Callback] | Callback | None)
        others = listed.instantiate(Namespace(callbacks=config.trainer.callbacks)).callbacks or []
        self.model, self.datamodule, self.trainer = made.model, made.data, cast(Any, None)
        self.callbacks = [made["update"], *(others if isinstance(others, list) else [others])]


RUN_OPTIONS = {
    "config": "a configuration file, or the name of a shipped one; the later of several override the earlier",
    "name": NAME,
    "logger": LOGGER,
    "ckpt_path": "checkpoint to go on from or to evaluate; `last` is the newest of this experiment",
    "on_conflict {error,config,checkpoint}": ON_CONFLICT,
    "seed_everything": "seed of all random numbers, or true for a new one",
    "print_config": "print the whole configuration and stop",
}


def run(verb: str, args: list[str]) -> None:
    """Run a verb of LightningCLI."""
    if args in (["--help"], ["-h"]):
        print(page(verb, RUN_OPTIONS))
        return
    args = ["--help"] if args == ["--help", "all"] else args
    LitTRCLI(args=[verb, *with_shipped(args)], parser_kwargs={"prog": "lit-tr"})


def configured(args: list[str]) -> DataCLI:
    """Return the module, data module and callbacks that `fit` would make from its options."""
    return DataCLI(run=False, save_config_callback=None, args=with_shipped(args))


def _plain(value: Any) -> list[Any]:
    return [one.tolist() for one in value] if isinstance(value, list) else value.tolist()


def _tokenizer(model: PreferenceModule) -> str:
    return cast(PretrainedPolicy, model.source).path
