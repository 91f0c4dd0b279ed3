"""`lit-tr iterate`: rounds that sample, score, pair and train, in a folder that is gone on with after any stop."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import torch
import yaml  # type: ignore[import-untyped]
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from rich.box import SIMPLE_HEAD
from rich.table import Table

from lit_tr.checkpoints import complete_checkpoints
from lit_tr.commands.configs import shipped, with_shipped
from lit_tr.commands.export import export
from lit_tr.commands.fit import configured
from lit_tr.commands.parsing import parsed
from lit_tr.console.counted import CountedProgress
from lit_tr.console.terminal import console
from lit_tr.data.datamodule import Data
from lit_tr.errors import UserError, explained
from lit_tr.evaluation.prompts import source_of
from lit_tr.evaluation.sampling import Sampling
from lit_tr.iteration.confidence import Confidence
from lit_tr.iteration.instruct import SelfInstruct
from lit_tr.iteration.pairing import Pairing
from lit_tr.iteration.rounds import Figures, Parts, Rounds, Stop, exploited
from lit_tr.iteration.training import NAMES, Chain, Config, check_fit, pair_rows, substituted
from lit_tr.policy.loading import PretrainedPolicy
from lit_tr.rewards import Reward, as_scorer

DESCRIPTION = """Train in rounds: `lit-tr iterate --config iterate_embedded`. A round samples candidates from the
policy, scores them, makes pairs, trains on them by `lit-tr fit`, and evaluates on held-out prompts. Each has a folder
in OUTPUT; the same command goes on after any stop, and does nothing twice. In texts of options {policy} is the policy
that the round begins with, {previous} the one of the round before, {initial} that of round 1, {base} the configured
one, and {output} the folder."""
FIT = """the training of a round, as options of `lit-tr fit`: a file, the name of a shipped configuration, a mapping, or
a list of these, the later of which override the earlier. data.train is replaced by the round's pairs, and model.policy
by the policy of the round before"""
PROMPTS = "rows with the prompts of the rounds, as --data of `lit-tr generate`"
INSTRUCT = "write new prompts for each round after the pattern of --prompts (Self-Instruct), in their place"
HELD_OUT = "rows that evaluate; pairs among them say how far the reward agrees with their labels"
OTHERS = "paths of policies that respond beside that of the round, such as '{initial}'; they train nothing"
SETTINGS, FREE = "iterate.json", ("rounds", "output", "batch_tokens", "stop", "config")
"""File of the options in OUTPUT, and options that may change when rounds go on."""
FIT_OPTIONS = str | dict | list  # of plain data: typed values would be taken for arguments of classes


def run(args: list[str]) -> None:
    """Make rounds as the options say."""
    made = parser()
    given = parsed(made, with_shipped(args))
    given.fit, given.warm_up = merged("fit", given.fit), merged("warm_up", given.warm_up) if given.warm_up else None
    plain = json.loads(made.dump(given, skip_none=False, format="json"))
    folder = Path(given.output)
    options = made.instantiate(_named(made, plain, dict.fromkeys(NAMES, "POLICY")))
    check_fit(given.fit, "fit")
    chain = Chain(_checked("fit", given.fit), folder, given.warm_up is not None)
    if given.warm_up:
        check_fit(given.warm_up, "warm_up")
        _checked("warm_up", given.warm_up, own_rows=True)
    with _alone(folder) as lock:
        _keep_settings(folder, plain)
        rounds = Rounds(
            chain,
            lambda names: _parts(made, plain, names),
            Sampling(**vars(options.sampling)),
            options.prompts_per_round,
            source_of(options.prompts),
            source_of(options.held_out),
            options.held_out_prompts,
            lambda where, config: _train(where, config, lock),
            print,
            CountedPhase,
            given.warm_up,
            Stop(**vars(options.stop)),
            options.batch_tokens,
        )
        done = rounds.run(options.rounds)
    _print(done)
    print(f"- policies, candidates, pairs and figures are in {folder}; `lit-tr report {folder}` draws them")


def parser() -> ArgumentParser:
    """Return the parser of the verb."""
    made = ArgumentParser(prog="lit-tr iterate", description=DESCRIPTION, exit_on_error=False)
    made.add_argument("--config", action=ActionConfigFile, help="options as YAML, or the name of a shipped one")
    made.add_argument("--fit", type=FIT_OPTIONS, required=True, help=FIT)
    made.add_argument("--warm_up", type=FIT_OPTIONS | None, help="a training before round 1, as --fit; it has its rows")
    made.add_argument("--prompts", type=Data, required=True, help=PROMPTS)
    made.add_argument("--instruct", type=SelfInstruct | None, help=INSTRUCT)
    made.add_argument("--held_out", type=Data, required=True, help=HELD_OUT)
    made.add_argument("--reward", type=Reward, required=True, help="scores candidates, as --reward of `lit-tr score`")
    made.add_argument("--truth", type=Reward | None, help="another reward that is measured and never trained on")
    made.add_argument("--rounds", type=PositiveInt, default=3, help="default: %(default)s")
    made.add_argument("--prompts_per_round", type=PositiveInt, default=256, help="default: %(default)s")
    made.add_argument("--held_out_prompts", type=PositiveInt, default=100, help="default: %(default)s")
    made.add_argument("--pairing", type=Pairing, default={"class_path": "lit_tr.iteration.MaxMin"}, help="makes pairs")
    made.add_argument("--confidence", type=Confidence | None, help="says how sure pairs are, such as RankAgreement")
    made.add_argument("--others", type=list[str], default=[], help=OTHERS)
    made.add_class_arguments(Sampling, "sampling")
    made.set_defaults({"sampling.samples": 4})
    made.add_class_arguments(Stop, "stop")
    made.add_argument("--batch_tokens", type=PositiveInt | None, help="most tokens of a batch, prompts and responses")
    made.add_argument("--output", type=str, default="runs/iterate", help="a folder; default: %(default)s")
    return made


def merged(name: str, given: Any) -> Config:
    """Return a configuration of `lit-tr fit`, of a file, a mapping, or several of them.

    Raises:
        UserError: a file cannot be read.
    """
    found: Config = {}
    for one in given if isinstance(given, list) else [given]:
        if isinstance(one, str):
            path = Path(one) if Path(one).exists() else shipped(one)
            with explained(f"{name} {one}: it cannot be read as YAML", OSError, yaml.YAMLError):
                one = yaml.safe_load(path.read_text()) or {}
        found = _updated(found, one)
    return found


def _updated(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: _updated(old.get(key), value) for key, value in new.items()}
    return new


def _named(made: ArgumentParser, plain: Mapping[str, Any], names: Mapping[str, str]) -> Namespace:
    """Return options in which `{policy}` and the others have their values; those of trainings stay as they are."""
    kept = {name: plain[name] for name in ("fit", "warm_up")}
    return made.parse_object({**substituted(dict(plain), names), **kept})


def _parts(made: ArgumentParser, plain: Mapping[str, Any], names: Mapping[str, str]) -> Parts:
    options = made.instantiate(_named(made, plain, names))
    truth = as_scorer(options.truth) if options.truth else None
    reward, others = as_scorer(options.reward), options.others
    return Parts(reward, options.pairing, options.confidence, truth, others, plain["fit"], options.instruct)


def _checked(name: str, given: Config, own_rows: bool = False) -> PretrainedPolicy:
    """Return the policy of a training, all options of which are known to `lit-tr fit`.

    Raises:
        UserError: an option is wrong, or the policy is none that can be written and loaded again.
    """
    rows = {} if own_rows else {"data": {"train": pair_rows(Path("pairs.jsonl"), False)}}
    config = substituted(_updated(given, rows), dict.fromkeys(NAMES, "POLICY"))
    with _file(config) as file:
        made = configured(["--config", file])
    source = made.model.source
    if not isinstance(source, PretrainedPolicy):
        raise UserError(f"{name}: model.policy must be a folder or hub id")
    return source


@contextmanager
def _file(config: Config) -> Iterator[str]:
    from tempfile import NamedTemporaryFile

    with NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(config, file)
        file.flush()
        yield file.name


@contextmanager
def _alone(folder: Path) -> Iterator[TextIO]:
    """Keep other processes off a folder, also while a training that was left behind still runs there."""
    with explained(f"output {folder}: it cannot be written", OSError):
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(
                f"output {folder}: another process makes rounds there, or its training still runs"
            ) from error
        yield lock


def _keep_settings(folder: Path, plain: Mapping[str, Any]) -> None:
    """Write the options, or check that the rounds that are there have the same.

    Raises:
        UserError: they have others.
    """
    file, own = folder / SETTINGS, {name: value for name, value in plain.items() if name not in FREE}
    kept = json.loads(file.read_text()) if file.exists() else own
    if differing := [name for name in own if kept.get(name) != own[name]]:
        lines = "\n".join(f"  {name}: {kept.get(name)}, now {own[name]}" for name in differing)
        raise UserError(f"output {folder}: its rounds have other options; give another folder, or these:\n{lines}")
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(own, indent=2) + "\n")
    partial.replace(file)


def _train(folder: Path, config: Config, lock: TextIO) -> None:
    """Train by `lit-tr fit` in a process of its own, which may start others, and write the policy.

    Raises:
        UserError: the training failed.
    """
    file, runs = folder / "fit.yaml", folder / "training"
    file.write_text(yaml.safe_dump(config, sort_keys=False))
    command = [sys.executable, "-m", "lit_tr", "fit", "--config", str(file)]
    if newest := _newest(runs):
        command += ["--ckpt_path", str(newest)]
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    environment = {name: value for name, value in os.environ.items() if name != "PL_GLOBAL_SEED"}
    done = subprocess.run(command, pass_fds=[lock.fileno()], env=environment, check=False)
    if done.returncode in (130, 143):
        raise KeyboardInterrupt
    checkpoint = _newest(runs)
    if done.returncode or checkpoint is None:
        why = f"exit code {done.returncode}" if done.returncode else "no checkpoint was written"
        raise UserError(f"the training in {folder} failed ({why}); mend it, and the same command goes on")
    export(checkpoint, folder / "policy")


def _newest(runs: Path) -> Path | None:
    return next(complete_checkpoints(runs), None) if runs.exists() else None


class CountedPhase(CountedProgress):
    """Progress of a phase; its value is called with how many more are done."""

    def __enter__(self) -> Any:
        """Start the display."""
        super().__enter__()
        return self.add


def _print(done: Sequence[Figures]) -> None:
    """Print a row for each round, and what the figures say."""
    shown, rewards = console(), ["reward", *(["truth"] if "truth" in done[0] else [])]
    names = ("round", "pairs", *rewards, "win rate", "KL", "tokens", "agrees")
    table = Table(*names, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for one in done:
        table.add_row(*_cells(one, rewards))
    shown.print(table)
    said = (
        "Held-out means with standard errors; win rate over the round before; KL from the initial policy in nats per "
        "response; how often the reward agrees with labels"
    )
    shown.print(said, soft_wrap=True)
    if (number := exploited(done)) is not None:
        print(f"- the reward is exploited from round {number} on: it rose, and the truth fell")


def _cells(one: Figures, rewards: Sequence[str]) -> Iterator[str]:
    yield str(one["round"])
    yield str(one.get("pairs", "-"))
    for name in rewards:
        yield f"{one[name]:.3f}±{one[f'{name}_standard_error']:.3f}"
    rate = one.get(f"{rewards[-1]}_win_rate")
    yield "-" if rate is None else "{:.0%} [{:.0%},{:.0%}]".format(rate, *one[f"{rewards[-1]}_win_rate_interval"])
    yield f"{one['kl']:.2f}"
    yield f"{one['length']:.1f}"
    yield f"{one['agreement']:.0%}" if "agreement" in one else "-"
