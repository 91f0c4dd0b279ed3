"""Which files a path stands for: a file, a pattern, a folder, a URL or a data set of the Hugging Face hub."""

import os
import re
from pathlib import Path
from typing import Any

import datasets
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.exceptions import DatasetNotFoundError
from datasets.naming import camelcase_to_snakecase
from fsspec.core import url_to_fs
from huggingface_hub import snapshot_download
from huggingface_hub.errors import IncompleteSnapshotError

from lit_tr.data.rows.opening import KINDS, endings
from lit_tr.embedded.model import check_hub
from lit_tr.errors import UserError

Splits = dict[str, list[str]]
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
WILD = re.compile(r"[*?\[]")


def splits(path: str, name: str | None = None, revision: str | None = None) -> Splits:
    """Return the files of each split; those of a file or a pattern are all `train`.

    Args:
        path: as that of `Rows`, without `~`.
        name: configuration of the data set, where it has several.
        revision: commit, tag or branch of the hub's data set.

    Raises:
        UserError: there is no such data, or it cannot be reached.
    """
    if os.path.isdir(path):
        return _of_folder(path, name)
    return _of_hub(path, name, revision) if is_hub_id(path) else _of_system(path)


def is_hub_id(path: str) -> bool:
    """Return whether a path is the name of a data set on the hub: nothing here has it, and no file would."""
    return bool(HUB_ID.fullmatch(path)) and not os.path.exists(path) and endings(path)[0] not in KINDS


def _of_folder(path: str, name: str | None) -> Splits:
    try:
        return _saved(path) or _known(datasets.load_dataset_builder(path, name))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no rows can be read from this folder: {error}") from error


def _saved(path: str) -> Splits | None:
    """Return the Arrow files of what `save_to_disk` wrote."""
    try:
        saved = datasets.load_from_disk(path)
    except FileNotFoundError:
        return None
    return _arrow(saved if isinstance(saved, dict) else {"train": saved})


def _of_hub(path: str, name: str | None, revision: str | None) -> Splits:
    owner, _, last = path.rpartition("/")
    kept = "___".join(filter(None, (owner, camelcase_to_snakecase(last))))
    if not (Path(datasets.config.HF_DATASETS_CACHE) / kept).exists():  # what `datasets` has made of it
        check_hub(path, "dataset")
    try:
        builder = datasets.load_dataset_builder(path, name, revision=revision)
        if builder.config.data_files or revision in (None, "main", builder.hash):
            return _known(builder)
        reason: Any = f"the cache of `datasets` has revision {builder.hash} only"
    except DatasetNotFoundError as error:
        raise UserError(f"{path}: no such file or folder, and on the hub: {error}") from error
    except Exception as error:  # also whatever the client of the network raises
        reason = error
    try:
        folder = snapshot_download(path, repo_type="dataset", revision=revision, local_files_only=True)
    except IncompleteSnapshotError as error:
        raise UserError(f"{path}: {error}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no such file or folder, nor a data set of the hub or its caches: {reason}") from error
    return _of_folder(folder, name)


def _known(builder: Any) -> Splits:
    """Return the files that a builder of `datasets` knows: those of the data, or those of its own cache."""
    files = builder.config.data_files
    if not files:
        return _arrow(builder.as_dataset())
    return {str(split): [str(url) for url in urls] for split, urls in files.items()}


def _arrow(parts: dict[str, Any]) -> Splits:
    return {str(split): [file["filename"] for file in part.cache_files] for split, part in parts.items()}


def _of_system(path: str) -> Splits:
    try:
        system, inside = url_to_fs(path)
        if system.isfile(inside):
            return {"train": [path]}
        if system.isdir(inside):
            files = DataFilesDict.from_patterns(get_data_patterns(path), base_path=path)
            return {str(split): list(map(str, urls)) for split, urls in files.items()}
        found = system.glob(inside, detail=True) if WILD.search(inside) else {}
    except (OSError, ImportError, ValueError) as error:
        raise UserError(f"{path}: cannot be reached: {error}") from error
    names = sorted(name for name, info in found.items() if info["type"] != "directory")
    if not names:
        raise UserError(f"{path}: there is no such file" + (" that the pattern fits" if WILD.search(path) else ""))
    if "://" not in path:
        return {"train": names}
    return {"train": [system.unstrip_protocol(name) for name in names]}
