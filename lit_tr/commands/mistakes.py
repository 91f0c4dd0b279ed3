"""What is said of users' mistakes, and of disks that are full."""

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
HOLDERS = re.compile(
    r"Does not validate against|Subtypes: |Errors:|Given value|Expected a <class .NoneType.>"
    r"|Problem with given class_path .*PreferenceModule.:"
)
"""Lines of a parser's message that say in what an option stands, and not what is wrong with it."""


def say(line: str) -> None:
    """Print a line on rank 0, to where warnings go."""
    if not getattr(rank_zero_only, "rank", 0):
        print(f"lit-tr: {line}", file=sys.stderr)


def message(error: BaseException) -> str | None:
    """Return what to tell the user of an error; None for one that a traceback tells more of."""
    for one in _chain(error):
        if isinstance(one, (UserError, MisconfigurationException)):
            return str(one)
        if isinstance(one, OSError) and one.errno in CANNOT_WRITE and _path(one):
            return _unwritable(one, str(_path(one)))
    if isinstance(error, ArgumentError):
        return _unread(str(error))
    if isinstance(error, (ValueError, ImportError)):
        return f"{error} (for the place in the code, set LIT_TR_TRACEBACK=1)"
    return None


def unwritable(error: BaseException, folder: str) -> str | None:
    """Return what to tell the user of an error that comes from a full disk or a folder that cannot be written.

    Args:
        error: what was raised.
        folder: what was written to, where the error does not say it.
    """
    for one in _chain(error):
        if isinstance(one, OSError) and one.errno in CANNOT_WRITE:
            return _unwritable(one, _path(one) or folder)
    return None


def _unread(text: str) -> str:
    """Return what a parser says of an option, without what it says of the options that hold it."""
    keys = re.findall(KEY, text)
    lines = [line.strip(" -") for line in re.sub(KEY, "\n", text).splitlines()]
    said = [line for line in lines if line and not HOLDERS.match(line)]
    return "\n  ".join([f"--{'.'.join(keys)}:", *said] if keys else said)


def _unwritable(error: OSError, path: str) -> str:
    return (
        f"{path}: {error.strerror}; make room, or give another folder (trainer.default_root_dir), and the run goes on "
        "from its last whole checkpoint with --ckpt_path last"
    )


def _path(error: OSError) -> str | None:
    path = error.filename2 or error.filename
    return None if path is None else str(path)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what it comes from: parsers wrap what a class raises."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
