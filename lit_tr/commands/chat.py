"""`lit-tr chat`: talk to a policy, and see what its reference and the initial policy say beside it."""

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial

from jsonargparse import ArgumentParser
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_tr.commands.mistakes import say
from lit_tr.commands.parsing import parsed
from lit_tr.console.terminal import console
from lit_tr.data.example import Message, message
from lit_tr.data.rows import Record
from lit_tr.errors import UserError
from lit_tr.evaluation.local import LocalPolicy
from lit_tr.evaluation.policies import (
    INITIAL,
    POLICY,
    REFERENCE,
    WHICH,
    Checkpoint,
    Loading,
    checkpoint_of,
    open_policies,
    split_spec,
)
from lit_tr.evaluation.sampling import Sampling

DESCRIPTION = """Talk to a policy: `lit-tr chat runs/NAME`. POLICY is a checkpoint or the folder of a run, with
`:reference` or `:initial` behind it for these, or a Hugging Face folder or id of a model or an adapter. Lines may come
from a pipe as well."""

HELP = """/beside     what the policy, its reference and the initial policy answer to your last message
/reference  what the reference answers     /initial  what the initial policy answers
/reset      a new conversation             /quit     the end, as Ctrl-D"""

SIDE_BY_SIDE = 90
"""Columns of a terminal from which on answers stand beside each other."""


class Conversation:
    """A conversation with a policy; others answer its last message on request, and are not remembered.

    Args:
        policies: what loads each policy that there is, by `policy`, `reference` and `initial`.
        which: the one that is talked to.
        sampling: how answers are drawn.
        system: a system prompt.
        shown: where answers go.
    """

    def __init__(
        self,
        policies: Mapping[str, Callable[[], LocalPolicy]],
        which: str,
        sampling: Sampling,
        system: str | None,
        shown: Console,
    ) -> None:
        self.policies, self.which, self.sampling, self.shown = policies, which, sampling, shown
        self.system = [message("system", system)] if system else []
        self.turns: list[Message] = []
        self.is_chat = bool(self.policies[which]().tokenizer.chat_template)

    def say(self, text: str) -> None:
        """Answer a message, and remember both."""
        asked = [*self._before(), message("user", text)]
        answer = self._answered(self.which, asked, self._print)
        self.shown.print()
        self.turns = [*asked, message("assistant", answer)]

    def reset(self) -> None:
        """Forget all messages."""
        self.turns = []

    def other(self, which: str) -> None:
        """Print what another policy answers to the last message."""
        self.shown.print(Text(f"{which}: ", style="bold"), end="")
        self._answered(which, self._asked(), self._print)
        self.shown.print()

    def beside(self) -> None:
        """Print the last answer, and what the others answer, beside each other where the terminal is wide."""
        asked = self._asked()
        answers = {self.which: self.turns[-1]["content"]}
        answers |= {one: self._answered(one, asked, lambda text: None) for one in WHICH if one != self.which}
        if self.shown.is_terminal and self.shown.width >= SIDE_BY_SIDE:
            table = Table(*answers, expand=True)
            table.add_row(*(Text(text.strip()) for text in answers.values()))
            self.shown.print(table)
            return
        for which, text in answers.items():
            self.shown.print(Text(f"{which}: ", style="bold"), Text(text.strip()), soft_wrap=True)

    def _before(self) -> list[Message]:
        return self.turns if self.turns and self.is_chat else list(self.system)

    def _asked(self) -> list[Message]:
        if not self.turns:
            raise UserError("say something first")
        return self.turns[:-1]

    def _answered(self, which: str, asked: list[Message], tell: Callable[[str], None]) -> str:
        if which not in self.policies:
            raise UserError(f"{which}: only a checkpoint has it, and this policy is none")
        policy, sampling = self.policies[which](), self.sampling
        text = "\n\n".join(one["content"] for one in asked)  # without a template: the system prompt and this message
        row = {"messages": asked} if self.is_chat else {"prompt": text}
        [prompt] = policy.reader(sampling)(Record("this message", row), 0)
        return policy.say(replace(prompt, id=f"{len(asked)}"), sampling, tell)

    def _print(self, text: str) -> None:
        self.shown.print(Text(text), end="", soft_wrap=True)
        self.shown.file.flush()


def run(args: list[str]) -> None:
    """Talk until the input ends."""
    made = ArgumentParser(prog="lit-tr chat", description=DESCRIPTION, exit_on_error=False)
    made.add_argument("policy", type=str, metavar="POLICY", help="whom to talk to; see above")
    made.add_argument("--system", type=str | None, help="a system prompt")
    made.add_class_arguments(Sampling, None, as_group=True, skip={"greedy", "samples"})
    made.add_argument("--greedy", action="store_true", help="take the likeliest token each time")
    made.add_class_arguments(Loading, None, as_group=True)
    made.epilog = f"in the conversation:\n{HELP}"
    given = parsed(made, args)
    sampling = Sampling(**{name: given[name] for name in vars(Sampling()) if name != "samples"})
    policies, which = _policies(given.policy, Loading(**{name: given[name] for name in vars(Loading())}))
    talk = Conversation(policies, which, sampling, given.system, console())
    if not talk.is_chat:
        say("the tokenizer has no chat template: each line is a prompt of its own, as it stands")
    if sys.stdin.isatty():
        talk.shown.print(f"Talking to {policies[which]().name}; /help lists commands")
    for line in _lines():
        if line == "/quit":
            return
        _obey(talk, line)


def _obey(talk: Conversation, line: str) -> None:
    """Do what a line says; Ctrl-C ends an answer, and not the conversation."""
    commands: dict[str, Callable[[], None]] = {
        "/beside": talk.beside,
        "/reference": partial(talk.other, REFERENCE),
        "/initial": partial(talk.other, INITIAL),
        "/reset": talk.reset,
        "/help": lambda: talk.shown.print(HELP),
    }
    try:
        if line in commands:
            commands[line]()
        elif line.startswith("/") and line.split()[0][1:].isalpha():
            raise UserError(f"there is no {line.split()[0]}\n{HELP}")
        else:
            talk.say(line)
    except UserError as error:
        say(str(error))
    except KeyboardInterrupt:
        talk.shown.print("\n(stopped, and forgotten)")


def _policies(spec: str, loading: Loading) -> tuple[dict[str, Callable[[], LocalPolicy]], str]:
    """Return what loads each policy that there is, and the name of the one that is meant."""
    path, which = split_spec(spec)
    file = checkpoint_of(path)
    if file is None:
        [policy] = open_policies([spec], loading)
        return {POLICY: lambda: policy}, POLICY
    checkpoint = Checkpoint(file, loading)
    return {one: cache(partial(checkpoint.policy, one)) for one in WHICH}, which


def _lines() -> Iterator[str]:
    """Yield the lines of the input that are not empty."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    import readline  # noqa: F401  makes `input` edit lines and remember them

    while True:
        try:
            line = input("\n> ").strip()
        except EOFError:
            return
        if line:
            yield line
