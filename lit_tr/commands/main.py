"""`lit-tr`: the table of its verbs, and the codes that it exits with."""

import os
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_tr import ignore_expected_warnings
from lit_tr.commands import data, export, fit, plan
from lit_tr.commands.mistakes import message
from lit_tr.errors import UserError

MISTAKE, INTERRUPTED, TERMINATED = 2, 130, 143
"""Exit codes: of a user's mistake, and what shells give for SIGINT and SIGTERM."""


class Verb(NamedTuple):
    """A verb of `lit-tr`: what it does, in a line, and the function that takes its arguments."""

    meaning: str
    run: Callable[[list[str]], None]


VERBS = {
    "fit": Verb("train a policy on preferences; --ckpt_path last goes on with the run", partial(fit.run, "fit")),
    "validate": Verb("log the metrics of a checkpoint on the validation rows", partial(fit.run, "validate")),
    "test": Verb("log the metrics of a checkpoint on the test rows", partial(fit.run, "test")),
    "predict": Verb("write losses, rewards and log-probs of each example to a file", partial(fit.run, "predict")),
    "data": Verb("`data inspect`: show what fit would train on, without a model", data.run),
    "plan": Verb("say what memory and time fit would take, without weights", plan.run),
    "export": Verb("write the policy or reference of a checkpoint as a Hugging Face folder", export.run),
}


def main(args: list[str] | None = None) -> None:
    """Run `lit-tr`.

    A user's mistake ends it with one message and exit code 2; with LIT_TR_TRACEBACK set in the environment, with a
    traceback. Ctrl-C ends it with 130 and SIGTERM with 143, after the checkpoint that they leave is written.

    Args:
        args: verb and options; None takes those of the command line.
    """
    ignore_expected_warnings()
    sys.path.append(os.getcwd())  # so that a class_path can name what lies there
    try:
        _run(sys.argv[1:] if args is None else args)
    except KeyboardInterrupt:
        sys.exit(_of_rank_zero(INTERRUPTED))
    except SIGTERMException:
        sys.exit(_of_rank_zero(TERMINATED))
    except SystemExit as stopped:  # Lightning makes one of Ctrl-C
        if not isinstance(stopped.__context__, KeyboardInterrupt):
            raise
        sys.exit(_of_rank_zero(INTERRUPTED))
    except Exception as error:
        text = message(error)
        if text is None or os.environ.get("LIT_TR_TRACEBACK"):
            raise
        print(f"lit-tr: {text}", file=sys.stderr)
        sys.exit(MISTAKE)


def _run(args: list[str]) -> None:
    verb, *options = args or [""]
    if verb in ("", "-h", "--help"):
        print(_table())
        if not verb:
            sys.exit(MISTAKE)
    elif verb == "--version":
        print(f"lit-tr {version('lit-tr')}")
    elif verb in VERBS:
        VERBS[verb].run(options)
    else:
        raise UserError(f"there is no verb {verb!r}: take one of {', '.join(VERBS)}")


def _table() -> str:
    lines = [f"  {name:<10}{verb.meaning}" for name, verb in VERBS.items()]
    return "\n".join(
        [
            "usage: lit-tr VERB [options]",
            "",
            "Trust-Region preference alignment: TR-DPO, TR-IPO, TR-KTO.",
            "",
            "verbs:",
            *lines,
            "",
            "`lit-tr VERB --help` lists the options of a verb, `lit-tr --version` prints the version.",
        ]
    )


def _of_rank_zero(code: int) -> int:
    """Return an exit code on rank 0, and 0 on others: at another code launchers kill ranks that still save."""
    return 0 if getattr(rank_zero_only, "rank", 0) else code
