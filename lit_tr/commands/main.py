"""`lit-tr`: its table of verbs and its exit codes."""

import os
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import NamedTuple

from lit_tr import ignore_expected_warnings
from lit_tr.errors import UserError

MISTAKE, INTERRUPTED, TERMINATED = 2, 130, 143
"""Exit codes: for a user's mistake, and as shells have them for SIGINT and SIGTERM."""

ON_A_CPU = {"THP_MEM_ALLOC_ENABLE": "1", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "128"}
"""Variables that torch reads when it first allocates and multiplies.

Huge pages leave fewer gaps between tensors, and kernels are kept for fewer shapes that do not come again (1,024 else).
"""


class Verb(NamedTuple):
    """A verb of `lit-tr`: its help line, and the function that takes its arguments."""

    meaning: str
    run: Callable[[list[str]], None]


def _of(module: str, *given: str) -> Callable[[list[str]], None]:
    """Return `run` of a module of this package, which is imported when the verb is run."""
    return lambda args: import_module(f"lit_tr.commands.{module}").run(*given, args)


VERBS = {
    "fit": Verb("train a policy on preferences; --ckpt_path last goes on with the run", _of("fit", "fit")),
    "validate": Verb(
        "log the metrics of a checkpoint on the validation rows, and the accuracy of its rewards",
        _of("fit", "validate"),
    ),
    "test": Verb("log the metrics of a checkpoint on the test rows", _of("fit", "test")),
    "predict": Verb("write losses, rewards and log-probs of each example to a file", _of("fit", "predict")),
    "data": Verb("`data inspect` shows what fit would train on; `data formats` lists formats of rows", _of("data")),
    "plan": Verb("estimate memory and time of fit, without weights", _of("plan")),
    "configs": Verb("list the configurations that ship with lit_tr; `configs show NAME` prints one", _of("configs")),
    "generate": Verb("write responses of policies to prompts; it goes on after any stop", _of("generate")),
    "chat": Verb("talk to a policy, and see what its reference and the initial policy say", _of("chat")),
    "judge": Verb("win rates of a policy's responses against another's, by a judge", _of("judge")),
    "score": Verb("score responses or preferences by a reward, beside labels or another reward", _of("score")),
    "iterate": Verb("train in rounds on pairs of the policy's own responses", _of("iterate")),
    "export": Verb("write a checkpoint's policy, reference or an average as a Hugging Face folder", _of("export")),
    "report": Verb("write one HTML page about runs: quality, win rates, curves, responses", _of("report")),
}


def main(args: list[str] | None = None) -> None:
    """Run `lit-tr`.

    A user's mistake exits with one message and code 2, or with a traceback if LIT_TR_TRACEBACK is set in the
    environment. Ctrl-C exits with 130 and SIGTERM with 143, after the checkpoint is saved.

    Args:
        args: verb and options; None takes those of the command line.
    """
    verb, *options = (sys.argv[1:] if args is None else args) or [""]
    if verb in ("", "-h", "--help"):
        print(_table())
        if not verb:
            sys.exit(MISTAKE)
    elif verb == "--version":
        print(f"lit-tr {version('lit-tr')}")
    else:
        _run(verb, options)


def _run(verb: str, options: list[str]) -> None:
    for name, value in ON_A_CPU.items():
        os.environ.setdefault(name, value)
    from lightning.pytorch.utilities.exceptions import SIGTERMException  # seconds, which --help need not take

    from lit_tr.commands.mistakes import message
    from lit_tr.commands.parsing import nearest
    from lit_tr.console.quiet import quieten

    ignore_expected_warnings()
    quieten()
    sys.path.append(os.getcwd())  # for class_path
    try:
        if verb not in VERBS:
            raise UserError(f"there is no verb {verb!r}{nearest(verb, [*VERBS])}")
        VERBS[verb].run(options)
    except SIGTERMException:
        sys.exit(_of_rank_zero(TERMINATED))
    except (KeyboardInterrupt, SystemExit) as stopped:  # the latter is Lightning's answer to the former
        if not isinstance(stopped, KeyboardInterrupt) and not isinstance(stopped.__context__, KeyboardInterrupt):
            raise
        sys.exit(_of_rank_zero(INTERRUPTED))
    except BrokenPipeError:  # as by `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        text = message(error)
        if text is None or os.environ.get("LIT_TR_TRACEBACK"):
            raise
        print(f"lit-tr: {text}", file=sys.stderr)
        sys.exit(MISTAKE)


def _table() -> str:
    verbs = "\n".join(f"  {name:<10}{verb.meaning}" for name, verb in VERBS.items())
    return f"""usage: lit-tr VERB [options]

Trust-Region preference alignment: TR-DPO, TR-IPO, TR-KTO.

verbs:
{verbs}

`lit-tr VERB --help` lists the options of a verb, `lit-tr --version` prints the version."""


def _of_rank_zero(code: int) -> int:
    """Return an exit code on rank 0, and 0 on others: launchers answer other codes by killing ranks that still save."""
    from lightning.pytorch.utilities import rank_zero_only

    return 0 if getattr(rank_zero_only, "rank", 0) else code
