"""Checkpoints: whether they were written to their end, and what they hold."""

import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from lightning.pytorch.utilities import rank_zero_warn

from lit_tr.errors import UserError

CLOCK_DIFFERENCE = 1.0
"""Seconds that the clocks of machines may differ by which write one checkpoint."""


def whole_checkpoints(root: Path) -> Iterator[Path]:
    """Yield the checkpoints below a folder, the newest first; one that was cut short is passed over, with a warning."""
    for path in sorted(root.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True):
        if is_whole(path):
            yield path
        else:
            rank_zero_warn(f"{path} was cut short when it was written; an older checkpoint is looked for")


def is_whole(path: Path) -> bool:
    """Whether a checkpoint was written to its end: a file ends with its table of contents, a folder with meta.pt.

    Lightning writes a folder's shards, then what says where they are, then meta.pt; over an older checkpoint too, whose
    files stay until then.
    """
    if not path.is_dir():
        return is_zipfile(path)
    named = [path / "meta.pt", path / ".metadata", *path.glob("*.distcp")]
    if not all(one.exists() for one in named):
        return False
    last, table, *shards = (one.stat().st_mtime for one in named)
    return last >= table and all(table > shard - CLOCK_DIFFERENCE for shard in shards)


def read(path: Path, weights_only: bool = True) -> dict[str, Any]:
    """Return a checkpoint, its tensors not yet read; of a folder of shards, what holds no tensors.

    Args:
        path: a file, or a folder of shards.
        weights_only: refuse what could run code when it is loaded.

    Raises:
        UserError: this is no checkpoint, or holds what is not loaded.
    """
    file = path / "meta.pt" if path.is_dir() else path
    try:
        saved = torch.load(file, map_location="cpu", weights_only=weights_only, mmap=is_zipfile(file))
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"checkpoint {path}: {_reason(error)}") from error
    if not isinstance(saved, dict):
        raise UserError(f"checkpoint {path}: this is no checkpoint of a module, but a {type(saved).__name__}")
    return saved


def _reason(error: Exception) -> str:
    if found := re.search(r"Unsupported (?:global|class|operand).*?\b([\w.]+\.\w+)", str(error)):
        return (
            f"it holds a {found[1]}, and nothing but plain numbers, strings, lists, dicts and tensors is loaded, for "
            "anything else could run code. Convert what a callback or hook saves: a NumPy number x by x.item(). A file "
            "that you trust is loaded with --weights_only false (fit, validate, test, predict)"
        )
    return f"this is no checkpoint, or not a whole one ({error})"
