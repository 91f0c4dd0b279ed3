"""`lit-tr iterate`: rounds that sample, score, pair and train, in a folder that is gone on with after any stop."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from math import nan
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt
from rich.box import SIMPLE_HEAD
from rich.table import Table

from lit_tr.commands.configs import shipped, with_shipped
from lit_tr.commands.fit import configured
from lit_tr.commands.mistakes import message
from lit_tr.commands.parsing import parsed
from lit_tr.commands.training import alone, sigterm_raises, train
from lit_tr.console.counted import CountedProgress
from lit_tr.console.terminal import console
from lit_tr.data.datamodule import Data
from lit_tr.errors import UserError, explained
from lit_tr.evaluation.answering import differences
from lit_tr.evaluation.evaluations import ROUNDS
from lit_tr.evaluation.prompts import source_of
from lit_tr.evaluation.responses import write_whole
from lit_tr.evaluation.sampling import Sampling
from lit_tr.iteration.confidence import Confidence
from lit_tr.iteration.figures import Figures, Stop, exploited
from lit_tr.iteration.instruct import SelfInstruct
from lit_tr.iteration.pairing import Pairing
from lit_tr.iteration.rounds import Parts, Rounds
from lit_tr.iteration.scores import Elsewhere, Scoring
from lit_tr.iteration.serve import Serve
from lit_tr.iteration.training import FORMAT, NAMES, Chain, Config, check_fit, pair_rows, substituted
from lit_tr.policy.loading import PretrainedPolicy
from lit_tr.rewards import Reward, Scorer, as_scorer

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
SERVE = (
    "a server that is started for the candidates of each round: --serve.command 'vllm serve {policy}' --serve.url URL"
)
PAIR_FORMAT = "makes examples of a pair of a round, as `format` of rows; default: %(default)s"
OTHERS = "paths of policies that respond beside that of the round, such as '{initial}'; they train nothing"
PROCESSES = "processes that respond and score, by default one on each GPU, or the first process alone"
FREE = ("rounds", "output", "batch_tokens", "serve", "processes", "max_bad_rows", "stop", "config")
"""Options that may change when rounds go on."""
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
    chain = Chain(_checked("fit", given.fit, plain["pair_format"]), folder, given.warm_up is not None)
    if given.warm_up:
        check_fit(given.warm_up, "warm_up")
        _checked("warm_up", given.warm_up)
    with sigterm_raises(), alone(folder) as lock:
        has_begun, devices = _has_begun(folder, plain), _devices(options.processes)
        rounds = Rounds(
            chain,
            parts=lambda names: _parts(made, plain, names, devices),
            rewards={name: plain[name] for name in ("reward", "truth")},
            sampling=Sampling(**vars(options.sampling)),
            prompts=options.prompts_per_round,
            source=source_of(options.prompts),
            held_out=source_of(options.held_out),
            evaluated=options.held_out_prompts,
            train=lambda where, config: train(where, config, lock),
            say=partial(print, flush=True),
            watch=CountedPhase,
            warm_up=given.warm_up,
            stop=Stop(**vars(options.stop)),
            batch_tokens=options.batch_tokens,
            max_bad_rows=options.max_bad_rows,
            devices=devices,
            pair_format=plain["pair_format"],
        )
        if not has_begun:
            rounds.check()
            write_whole(folder / ROUNDS, json.dumps(_fixed(plain), indent=2) + "\n")
        done = rounds.run(options.rounds)
    _print(done)
    print(f"- policies, candidates, pairs and figures are in {folder}; `lit-tr report {folder}` draws them")


def _devices(processes: int | None) -> list[str]:
    """Return the device of each process that responds and scores."""
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cpu"]
    return [gpus[i % len(gpus)] for i in range(processes or len(gpus))]


def parser() -> ArgumentParser:
    """Return the parser of the verb."""
    made = ArgumentParser(prog="lit-tr iterate", description=DESCRIPTION, exit_on_error=False)
    made.add_argument("--config", action=ActionConfigFile, help="options as YAML, or the name of a shipped one")
    made.add_argument("--fit", type=FIT_OPTIONS, required=True, help=FIT)
    made.add_argument("--warm_up", type=FIT_OPTIONS | None, help="a training before round 1, as --fit; it has its rows")
    made.add_argument("--prompts", type=Data, required=True, help=PROMPTS)
    made.add_argument("--instruct", type=SelfInstruct | None, help=INSTRUCT)
    made.add_argument("--serve", type=Serve | None, help=SERVE)
    made.add_argument("--held_out", type=Data, required=True, help=HELD_OUT)
    made.add_argument("--reward", type=Reward, required=True, help="scores candidates, as --reward of `lit-tr score`")
    made.add_argument("--truth", type=Reward | None, help="another reward that is measured and never trained on")
    made.add_argument("--rounds", type=PositiveInt, default=3, help="default: %(default)s")
    made.add_argument("--prompts_per_round", type=PositiveInt, default=256, help="default: %(default)s")
    made.add_argument("--held_out_prompts", type=PositiveInt, default=100, help="default: %(default)s")
    made.add_argument("--pairing", type=Pairing, default={"class_path": "lit_tr.iteration.MaxMin"}, help="makes pairs")
    made.add_argument("--pair_format", type=str | dict, default=FORMAT, help=PAIR_FORMAT)
    made.add_argument("--confidence", type=Confidence | None, help="says how sure pairs are, such as RankAgreement")
    made.add_argument("--others", type=list[str], default=[], help=OTHERS)
    made.add_class_arguments(Sampling, "sampling")
    made.set_defaults({"sampling.samples": 4})
    made.add_class_arguments(Stop, "stop")
    made.add_argument("--batch_tokens", type=PositiveInt | None, help="most tokens of a batch, prompts and responses")
    made.add_argument("--processes", type=PositiveInt | None, help=PROCESSES)
    made.add_argument("--max_bad_rows", type=float, default=0.01, help="rows without a prompt: a share, or a count")
    made.add_argument("--output", type=str, default="runs/iterate", help="a folder; default: %(default)s")
    return made


def merged(name: str, given: Any) -> Config:
    """Return a configuration of `lit-tr fit`, of a file, a mapping, or several of them.

    Raises:
        UserError: a file cannot be read, or there is something else.
    """
    found: Config = {}
    for one in given if isinstance(given, list) else [given]:
        made = one
        if isinstance(one, str):
            path = Path(one) if Path(one).exists() else shipped(one)
            with explained(f"{name} {one}: it cannot be read as YAML", OSError, yaml.YAMLError):
                made = yaml.safe_load(path.read_text()) or {}
        if not isinstance(made, dict):
            raise UserError(f"{name} {one}: a file or a mapping of options of `lit-tr fit` is expected")
        found = _updated(found, made)
    return found


def _updated(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return old | {key: _updated(old.get(key), value) for key, value in new.items()}
    return new


def _named(made: ArgumentParser, plain: Mapping[str, Any], names: Mapping[str, str]) -> Namespace:
    """Return options in which `{policy}` and the others have their values, but not in trainings and the server."""
    kept = {name: plain[name] for name in ("fit", "warm_up", "serve")}
    return made.parse_object({**substituted(dict(plain), names), **kept})


def _parts(made: ArgumentParser, plain: Config, names: Mapping[str, str], devices: Sequence[str]) -> Parts:
    options = made.instantiate(_named(made, plain, names))

    def scoring(name: str) -> Scoring:
        opened = partial(opened_reward, name, plain, names)
        return Scoring(as_scorer(getattr(options, name)), Elsewhere(opened, devices) if len(devices) > 1 else None)

    others = dict(zip(plain["others"], options.others, strict=True))
    how = (options.pairing, options.confidence, scoring("truth") if options.truth else None, others)
    serve = options.serve.named(names) if options.serve else None
    return Parts(scoring("reward"), *how, plain["fit"], options.instruct, serve)


def opened_reward(name: str, plain: Config, names: Mapping[str, str]) -> Scorer:
    """Return the `reward` or `truth` of some options."""
    made = parser()
    return as_scorer(getattr(made.instantiate(_named(made, plain, names)), name))


def _checked(name: str, given: Config, pair_format: Any = None) -> PretrainedPolicy:
    """Return the policy of a training, all options of which are known to `lit-tr fit`.

    Raises:
        UserError: an option is wrong, or the policy is none that can be written and loaded again.
    """
    rows = {"data": {"train": pair_rows(Path("pairs.jsonl"), False, pair_format)}} if pair_format else {}
    config = substituted(_updated(given, rows), dict.fromkeys(NAMES, "POLICY"))
    try:
        with _file(config) as file:
            made = configured(["--config", file])
    except Exception as error:
        if (text := message(error)) is None:
            raise
        raise UserError(f"{name}: {text.removeprefix('--')}") from error
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


def _has_begun(folder: Path, plain: Mapping[str, Any]) -> bool:
    """Return whether there are rounds of these options already.

    Raises:
        UserError: there are some of others.
    """
    file = folder / ROUNDS
    if not file.exists():
        return False
    kept = json.loads(file.read_text())
    if differing := [name for name in _fixed(plain) if kept.get(name) != plain[name]]:
        lines = "\n".join(f"  {line}" for name in differing for line in differences(kept.get(name), plain[name], name))
        raise UserError(
            f"output {folder}: its rounds have other options; give another folder, or these:\n{lines}\n"
            f"  rounds to come may have others if you change them in {file}, too; what is done stays"
        )
    return True


def _fixed(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in plain.items() if name not in FREE}


class CountedPhase(CountedProgress):
    """Progress of a phase; its value is called with how many more are done."""

    def __enter__(self) -> Any:
        """Start the display, unless all is done."""
        if self.done < self.total:
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
    shown.print(said)
    if (number := exploited(done)) is not None:
        print(f"- the reward is exploited from round {number} on: it rose, and the truth fell")


def _cells(one: Figures, rewards: Sequence[str]) -> Iterator[str]:
    yield str(one["round"])
    yield str(one.get("pairs", "-"))
    for name in rewards:
        yield f"{one[name]:.3f}±{one.get(f'{name}_standard_error', nan):.3f}"
    rate = one.get(f"{rewards[-1]}_win_rate")
    yield "-" if rate is None else "{:.0%} [{:.0%},{:.0%}]".format(rate, *one[f"{rewards[-1]}_win_rate_interval"])
    yield f"{one['kl']:.2f}"
    yield f"{one['length']:.1f}"
    yield f"{one['agreement']:.0%}" if "agreement" in one else "-"
