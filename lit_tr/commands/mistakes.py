"""Messages for users' mistakes and for full disks."""

import errno
import re
import sys
from argparse import ArgumentError
from collections.abc import Iterator

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only

from lit_tr.errors import UserError

CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ENOTDIR}

KEY = r'(?:Parser key|Key) "([^"]+)":'
PARENT_LINES = re.compile(
    r"Does not validate against|Subtypes: |Errors:|Given value|Expected a <class .NoneType.>"
    r"|Problem with given class_path .*PreferenceModule.:"
)
"""Lines of a parser's message about where an option is, and not what is wrong with it."""


def say(line: str) -> None:
    """Print a line to stderr on rank 0."""
    if not getattr(rank_zero_only, "rank", 0):
        print(f"lit-tr: {line}", file=sys.stderr)


def message(error: BaseException) -> str | None:
    """Return the message for an error; None for one that needs a traceback."""
    for one in _chain(error):
        if isinstance(one, (UserError, MisconfigurationException)):
            return str(one)
    if text := unwritable(error):
        return text
    if isinstance(error, ArgumentError):
        return _parser_message(str(error))
    if isinstance(error, (ValueError, ImportError)):
        return f"{error} (for the place in the code, set LIT_TR_TRACEBACK=1)"
    return None


def unwritable(error: BaseException, folder: str | None = None) -> str | None:
    """Return the message for a full disk or a folder that cannot be written: the error's, or else `folder`."""
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno in CANNOT_WRITE and (path := one.filename2 or one.filename or folder):
            return (
                f"{path}: {one.strerror}; make room, or give another folder (trainer.default_root_dir), and the run "
                "goes on from its last complete checkpoint with --ckpt_path last"
            )
    return None


def _parser_message(text: str) -> str:
    """Return a parser's message about an option, without those about the options that it is in."""
    keys = re.findall(KEY, text)
    lines = [line.strip(" -") for line in re.sub(KEY, "\n", text).splitlines()]
    reasons = [line for line in lines if line and not PARENT_LINES.match(line)]
    return "\n  ".join([f"--{'.'.join(keys)}:", *reasons] if keys else reasons)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes: parsers wrap what a class raises."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
