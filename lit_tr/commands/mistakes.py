"""Messages for users' mistakes and for full disks."""

import errno
import re
import sys
from argparse import ArgumentError
from collections.abc import Iterator

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only

from lit_tr.commands.parsing import explain
from lit_tr.errors import UserError

CANNOT_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.ENOTDIR}


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
        return explain(str(error), getattr(error, "options", ()))
    if isinstance(error, (ValueError, ImportError)):
        if re.search("Does not validate|Requirement '.*' not met", str(error)):
            return explain(str(error))
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


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and its causes: parsers wrap what a class raises."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
