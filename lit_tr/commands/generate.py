"""`lit-tr generate`: responses of policies to prompts, in files that are gone on with after any stop."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionConfigFile, ArgumentParser, Namespace
from jsonargparse.typing import PositiveInt

from lit_tr.commands.configs import with_shipped
from lit_tr.commands.mistakes import say
from lit_tr.commands.parsing import parsed
from lit_tr.console.counted import CountedProgress
from lit_tr.data.datamodule import Data
from lit_tr.data.rows import Source
from lit_tr.errors import UserError
from lit_tr.evaluation.answering import Policy, ResponseFile
from lit_tr.evaluation.exchange import write_formats
from lit_tr.evaluation.kl import over_prompts
from lit_tr.evaluation.policies import Checkpoint, Loading, checkpoint_of, open_policies, split_spec
from lit_tr.evaluation.prompts import Prompts, held_out, read_prompts, source_of
from lit_tr.evaluation.responses import Response
from lit_tr.evaluation.sampling import Sampling
from lit_tr.evaluation.served import ServedPolicy
from lit_tr.evaluation.steering import open_steered

DESCRIPTION = """Write responses of policies to prompts: `lit-tr generate runs/NAME runs/NAME:initial --data FILE`.
POLICY is a checkpoint or the folder of a run, with `:reference` or `:initial` behind it for these; or a Hugging Face
folder or id of a model, or of an adapter with its base. The responses of each are in OUTPUT/NAME.jsonl. The same
command goes on after any stop, and does nothing twice."""

DATA = """prompts: a file, a folder, a hub id, or a source by class_path; --data.path, --data.split 'train[:50]' and the
others are as --data.val of `lit-tr fit`. Rows have a prompt (prompt, instruction, question, messages, ...), or pairs of
any format of `lit-tr data formats`; of a .txt each line is a prompt. By default the validation rows of POLICY's run"""

FORMAT = """write the responses for other tools as well, each in a folder of its name below OUTPUT; several as
'[alpaca_eval, arena_hard]'"""

REWARDS = """with each response of a checkpoint, the implicit reward of each token, beta * log(policy / initial policy),
and the KL divergence from the initial policy; `lit-tr report` shades the tokens"""

STEER = """respond by the initial policy of a checkpoint, moved so many times by the token rewards of POLICY: 0 is the
initial policy, 1 is POLICY, above 1 goes further; several as '[0.5, 1, 2]'. Responses have their KL divergence from
the initial policy"""

Format = Literal["alpaca_eval", "arena_hard", "arena_hard_v01"]


def run(args: list[str]) -> None:
    """Generate as the options say."""
    made = parser()
    given = parsed(made, with_shipped(args))
    options = made.instantiate(given)
    sampling = Sampling(**{name: given[name] for name in vars(Sampling())})
    policies = _policies(options)
    source = source_of(options.data) if options.data else _held_out(options.policies)
    tasks = [_task(policy, source, sampling, options) for policy in policies]
    for answers, prompts in tasks:
        _tell(prompts)
        responses = _complete(answers)
        written = write_formats(_listed(options.format), responses, prompts.found, answers.path)
        print(f"{answers.policy.name}: {_said(responses)} in {', '.join(map(str, [answers.path, *written]))}")
    refused = [line for policy in policies for line in getattr(policy, "refused", [])]
    if refused:
        raise UserError(f"{len(refused)} requests were refused, and have no response; the first: {refused[0]}")


def parser() -> ArgumentParser:
    """Return the parser of the verb."""
    made = ArgumentParser(prog="lit-tr generate", description=DESCRIPTION, exit_on_error=False)
    made.add_argument("policies", nargs="*", type=str, default=[], metavar="POLICY", help="what responds; see above")
    made.add_argument("--config", action=ActionConfigFile, help="options as YAML")
    made.add_argument("--data", type=Data | None, help=DATA)
    made.add_argument("--prompts", type=PositiveInt | None, help="take so many prompts, the first")
    made.add_argument("--output", type=str, default="responses", help="folder, or a file NAME.jsonl for one policy")
    made.add_argument("--name", type=list[str] | str | None, help="name of the policy in the files, or a list of them")
    made.add_argument("--format", type=list[Format] | Format | None, help=FORMAT)
    made.add_class_arguments(Sampling, None, as_group=True, skip={"greedy"})
    made.add_argument("--greedy", action="store_true", help="take the likeliest token each time")
    made.add_class_arguments(Loading, None, as_group=True)
    made.add_argument("--token_rewards", action="store_true", help=REWARDS)
    made.add_argument("--steer", type=list[float] | float | None, help=STEER)
    made.add_argument("--batch_tokens", type=PositiveInt | None, help="most tokens of a batch, prompts and responses")
    made.add_argument("--max_bad_rows", type=float, default=0.01, help="rows without a prompt: a share, or a count")
    made.add_argument("--server", type=str | None, help="address of an OpenAI-compatible server that responds")
    made.add_argument("--model", type=str | None, help="name of the model on the server; by default its only one")
    made.add_argument("--at_once", type=PositiveInt, default=8, help="most requests to the server at a time")
    return made


def _policies(options: Namespace) -> Sequence[Any]:
    """Return what responds.

    Raises:
        UserError: nothing is given, or both policies and a server; or a server is asked for token rewards.
    """
    names = _listed(options.name)
    if bool(options.server) == bool(options.policies):
        raise UserError("give policies, `lit-tr generate POLICY ...`, or --server ADDRESS, and not both")
    if options.server and options.token_rewards:
        raise UserError("--token_rewards: a server says nothing of the initial policy; give a checkpoint")
    strengths = _listed(options.steer)
    if strengths and (options.server or options.token_rewards):
        raise UserError("--steer: it takes a checkpoint, and neither --server nor --token_rewards")
    if options.server:
        return [ServedPolicy(options.server, options.model, "".join(names[:1]), options.at_once)]
    loading = Loading(**{name: options[name] for name in vars(Loading())})
    found: Sequence[Any] = (
        open_steered(options.policies, strengths, loading, names)
        if strengths
        else open_policies(options.policies, loading, names, options.token_rewards)
    )
    for one in found:
        one.batch_tokens = options.batch_tokens
    return found


def _held_out(policies: Sequence[str]) -> Source:
    """Return the validation rows of the first run that a policy is a checkpoint of.

    Raises:
        UserError: there is none.
    """
    for file in filter(None, (checkpoint_of(split_spec(one)[0]) for one in policies)):
        if rows := held_out(Checkpoint(file).config, file):
            return rows
    raise UserError("no prompts are given: --data FILE")


def _task(policy: Policy, source: Source, sampling: Sampling, options: Namespace) -> tuple[ResponseFile, Prompts]:
    """Return what there is to do for a policy: all mistakes come out before the first response."""
    prompts = read_prompts(source, policy.reader(sampling), options.prompts, options.max_bad_rows)
    output = Path(options.output)
    if output.suffix != ".jsonl":
        output = output / (re.sub(r"[^\w.-]+", "--", policy.name) + ".jsonl")
    elif len(options.policies) > 1 or len(_listed(options.steer)) > 1:
        raise UserError(f"output {output}: give a folder for the files of several policies")
    return ResponseFile(output, policy, prompts.found, sampling), prompts


def _tell(prompts: Prompts) -> None:
    """Say what is not answered, or not as it stands."""
    if prompts.bad.found:
        say(f"left out {len(prompts.bad.found)} rows: {prompts.bad.reasons}; the first is {prompts.bad.found[0]}")
    if prompts.repeated:
        say(f"{prompts.repeated} rows have a prompt that was there already; it is answered once")
    if prompts.truncated:
        say(f"{prompts.truncated} prompts are truncated for the policy, to leave room for a response")


def _complete(answers: ResponseFile) -> list[Response]:
    done = len(answers.done())
    with CountedProgress(answers.policy.name, answers.total, done) as progress:
        return answers.complete(lambda made: progress.add(len(made), sum(one.tokens or 0 for one in made)))


def _said(responses: Sequence[Response]) -> str:
    """Return how many responses there are, how long, and how far from the initial policy."""
    known = [one.tokens for one in responses if one.tokens is not None]
    cut = sum(one.finished is False for one in responses)
    length = f", {sum(known) / len(known):.0f} tokens on average" if known else ""
    parts = [f"{len(responses)} responses{length}", *([f"{cut} cut at max_new_tokens"] if cut else [])]
    if all(one.kl is not None for one in responses):
        kl = over_prompts([one.kl or 0.0 for one in responses], [one.id for one in responses])
        parts.append(f"KL {kl.mean:.3f} ± {kl.standard_error:.3f} nats from the initial policy")
    return ", ".join(parts) + ("," if parts[1:] else "")


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
