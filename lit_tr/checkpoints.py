"""Find and read checkpoints."""

import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch

from lit_tr.errors import UserError
from lit_tr.warned import warn

CLOCK_DIFFERENCE = 1.0
"""Seconds by which the clocks of machines that write one checkpoint may differ."""


def complete_checkpoints(root: Path) -> Iterator[Path]:
    """Yield the complete checkpoints below a folder, the newest first; skip others with a warning."""
    for path in sorted(root.rglob("*.ckpt"), key=lambda path: path.stat().st_mtime, reverse=True):
        if is_complete(path):
            yield path
        else:
            warn(f"{path} was cut short when it was written; skipped for an older checkpoint")


def is_complete(path: Path) -> bool:
    """Whether a checkpoint is complete: a file ends with its zip directory, a folder is written up to meta.pt.

    Lightning writes a folder's shards, then their metadata, then meta.pt, also over an older checkpoint, whose files
    stay until then.
    """
    if not path.is_dir():
        return is_zipfile(path)
    files = [path / "meta.pt", path / ".metadata", *path.glob("*.distcp")]
    if not all(file.exists() for file in files):
        return False
    meta, metadata, *shards = (file.stat().st_mtime for file in files)
    return meta >= metadata and all(metadata > shard - CLOCK_DIFFERENCE for shard in shards)


def read(path: Path, weights_only: bool = True) -> dict[str, Any]:
    """Load a checkpoint, with tensors mapped from the file; from a folder of shards load only its meta.pt.

    Args:
        path: a file, or a folder of shards.
        weights_only: refuse objects that could run code when loaded.

    Raises:
        UserError: this is not a checkpoint, or it has such objects.
    """
    file = path / "meta.pt" if path.is_dir() else path
    try:
        saved = torch.load(file, map_location="cpu", weights_only=weights_only, mmap=is_zipfile(file))
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise UserError(f"checkpoint {path}: {_reason(error)}") from error
    if not isinstance(saved, dict):
        raise UserError(f"checkpoint {path}: this is not the checkpoint of a module, but a {type(saved).__name__}")
    return saved


def _reason(error: Exception) -> str:
    if match := re.search(r"Unsupported (?:global|class|operand).*?\b([\w.]+\.\w+)", str(error)):
        return (
            f"it holds a {match[1]}, and only plain numbers, strings, lists, dicts and tensors are loaded, for "
            "anything else could run code. Convert what a callback or hook saves: a NumPy number x by x.item(). A file "
            "that you trust is loaded with --weights_only false (fit, validate, test, predict)"
        )
    return f"this is not a checkpoint, or an incomplete one ({error})"
