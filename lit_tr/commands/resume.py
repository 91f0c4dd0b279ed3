"""Find the checkpoint to resume from, and resolve its differences from the configuration."""

import re
import warnings
from argparse import ArgumentError
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from pydoc import locate
from typing import Any, NamedTuple, cast

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers

from lit_tr.checkpoints import complete_checkpoints, is_complete, read
from lit_tr.commands.mistakes import say
from lit_tr.errors import UserError, explained
from lit_tr.hparams import TRAINING_ONLY, is_unsaved, parameters

MODULE = "lit_tr.module.PreferenceModule"
EXPERIMENT = re.compile(
    r"seed_everything|model|model\.(reference|loss)|model\.policy(\.(path|adapter|quantize|lora).*)?|update"
    r"|data\.train.*"
)
"""Options that identify an experiment; the others may change within one."""


class _Difference(NamedTuple):
    option: str
    configured: Any
    saved: Any

    def __str__(self) -> str:
        return f"{self.option}: {self.configured} in the configuration, {self.saved} in the checkpoint"


class _Candidate(NamedTuple):
    path: Path
    config: Namespace
    """The configuration with the checkpoint's values."""
    differences: list[_Difference]


def resumed(parser: LightningArgumentParser, config: Namespace, verb: str, on_conflict: str) -> tuple[Namespace, bool]:
    """Return the configuration to resume with, and whether it overrides the checkpoint's optimizer.

    Args:
        parser: parser of the verb.
        config: the parsed configuration; its `ckpt_path` names a checkpoint, or is `last`.
        verb: the verb.
        on_conflict: `error`, `config` or `checkpoint`.

    Raises:
        UserError: there is no such checkpoint, or it differs and `on_conflict` is `error`.
    """
    path = config.get("ckpt_path")
    if not path or ":" in path or path in ("best", "hpc"):  # a URL, or candidate by Lightning
        return config, False
    candidate = _newest(parser, config, verb) if path == "last" else _compared(parser, config, verb, _named(path))
    if candidate.differences and on_conflict == "error":
        listed = "\n  ".join(map(str, candidate.differences))
        raise UserError(
            f"--ckpt_path {candidate.path}: the configuration and the checkpoint differ:\n  {listed}\n"
            "Give --on_conflict checkpoint to go on with the checkpoint's values, or --on_conflict config with those "
            "of the configuration"
        )
    chosen = config if on_conflict == "config" else candidate.config
    chosen.ckpt_path = str(candidate.path)
    optimized = any(re.match(r"model\.(optimizer|lr_scheduler)\b", one.option) for one in candidate.differences)
    return chosen, on_conflict == "config" and optimized


def _named(path: str) -> Path:
    if not Path(path).exists():
        raise UserError(f"--ckpt_path: there is no checkpoint {path}")
    if not is_complete(Path(path)):
        raise UserError(f"--ckpt_path: {path} is not a checkpoint, or was cut short when it was written")
    return Path(path)


def _newest(parser: LightningArgumentParser, config: Namespace, verb: str) -> _Candidate:
    """Return the newest checkpoint of the experiment without differences, or else the newest one."""
    root, others = Path(config.trainer.default_root_dir or "."), []
    for path in complete_checkpoints(root):
        candidate = _compared(parser, config, verb, path)
        if not candidate.differences:
            say(f"--ckpt_path last: {path}")
            return candidate
        if differs := [one for one in candidate.differences if EXPERIMENT.fullmatch(one.option)]:
            say(f"--ckpt_path last: {path} is skipped, for it is of another experiment ({differs[0]})")
        else:
            others.append(candidate)
    if not others:
        raise UserError(
            f"--ckpt_path last: there is no complete checkpoint of this experiment below {root} "
            "(trainer.default_root_dir)"
        )
    say(f"--ckpt_path last: {others[0].path}")
    return others[0]


def _compared(parser: LightningArgumentParser, config: Namespace, verb: str, path: Path) -> _Candidate:
    checkpoint = read(path, weights_only=config.get("weights_only") is not False)
    saved = _saved(checkpoint, config, verb)
    with explained(f"checkpoint {path}: its configuration cannot be read", ArgumentError):
        merged = parser.parse_object(saved, deepcopy(config), defaults=False)
    return _Candidate(path, merged, list(_differences(config.as_dict(), merged.as_dict())))


def _saved(checkpoint: dict[str, Any], config: Namespace, verb: str) -> dict[str, Any]:
    """Return a checkpoint's values of a verb's options."""
    kept = {name: value for name, value in checkpoint.get("hyper_parameters", {}).items() if name != "_instantiator"}
    if not kept:
        return {}
    class_path = kept.pop("_class_path", MODULE)
    if kept.get("policy", "") is None:  # it was a model in memory
        del kept["policy"]
    accepted = {*parameters(cast(type, locate(class_path) or object))} - {*(() if verb == "fit" else TRAINING_ONLY)}
    init_args = {name: value for name, value in kept.items() if name in accepted and not is_unsaved(value)}
    saved: dict[str, Any] = {"model": {"class_path": class_path, "init_args": init_args}}
    run = (checkpoint.get("config") or {}) if verb == "fit" else {}
    saved |= {name: run[name] for name in ("update", "data") if name in run}
    if "data" in run:  # rows of validation and test may change
        saved["data"] = {name: value for name, value in run["data"].items() if name not in ("val", "test")}
    if "seed_everything" in run and config.seed_everything is not True:  # a seed that was asked for
        saved["seed_everything"] = run["seed_everything"]
    return saved


def _differences(configured: Any, saved: Any, option: str = "") -> Iterator[_Difference]:
    """Yield the differences by option; the arguments of different classes are not compared."""
    if isinstance(configured, list) and isinstance(saved, list) and len(configured) == len(saved):
        for number, both in enumerate(zip(configured, saved, strict=True)):
            yield from _differences(*both, f"{option}[{number}]")
    elif not (isinstance(configured, dict) and isinstance(saved, dict)):
        if configured != saved:
            yield _Difference(option, configured, saved)
    elif not _same_class(configured.get("class_path"), saved.get("class_path")):
        yield _Difference(option, configured.get("class_path"), saved.get("class_path"))
    else:
        for name in sorted({*configured, *saved}):
            inner = option if name == "init_args" else f"{option}.{name}".lstrip(".")
            missing: Any = {} if name == "init_args" else None  # a class without arguments may stand without them
            yield from _differences(configured.get(name, missing), saved.get(name, missing), inner)


def _same_class(configured: str | None, saved: str | None) -> bool:
    """Whether two import paths, one of which may lead through a package, name the same class."""
    return configured == saved or (None not in (configured, saved) and locate(str(configured)) is locate(str(saved)))


class ConfiguredOptimizer(Callback):
    """Resumes with the configured learning rate, schedule and options of the optimizer instead of the checkpoint's.

    The schedule goes on as if it had been the configured one from the first step; the optimizer's moments stay if its
    class stays.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Replace the restored values by the configured ones; a schedule that goes by a metric is a `UserError`."""
        optimizers, schedules = _init_optimizers_and_lr_schedulers(pl_module)
        if any(one.reduce_on_plateau for one in schedules):
            raise UserError(
                "--on_conflict config: ReduceLROnPlateau goes by what was measured since the first step, so optimizer "
                "and lr_scheduler cannot change within a run: give --on_conflict checkpoint, or start from the "
                "exported policy"
            )
        for schedule, restored in zip(schedules, trainer.lr_scheduler_configs, strict=True):
            scheduler: Any = schedule.scheduler
            with warnings.catch_warnings(action="ignore"):  # scheduler steps without optimizer steps
                for _ in range(trainer.global_step):
                    scheduler.step()
            restored.scheduler.load_state_dict(scheduler.state_dict())
        for made, live in zip(optimizers, trainer.optimizers, strict=True):
            for ours, theirs in zip(made.param_groups, live.param_groups, strict=True):
                theirs.update({name: value for name, value in ours.items() if name != "params"})
