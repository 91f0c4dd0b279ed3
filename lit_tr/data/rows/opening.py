"""Opens files of rows, wherever they lie and however they are compressed."""

import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import fsspec
import pyarrow
from fsspec.core import url_to_fs

from lit_tr.data.rows.columnar import Arrow, Parquet
from lit_tr.data.rows.files import File, Lines, Open, Table, listed_or_lines
from lit_tr.errors import UserError

KINDS: dict[str, Callable[[Open, int], File]] = {
    ".jsonl": Lines,
    ".ndjson": Lines,
    ".json": listed_or_lines,
    ".csv": Table,
    ".tsv": partial(Table, delimiter="\t"),
    ".parquet": Parquet,
    ".arrow": Arrow,
}
COMPRESSIONS = {".gz": "gzip", ".bz2": "bz2", ".xz": "xz", ".zst": "zstd"}
VERSIONS = (
    *("mtime", "created", "ETag", "etag", "Content-MD5", "Digest", "Last-Modified", "LastModified", "last_modified"),
    *("md5Hash", "blob_id"),
)
"""Under one of these names a file system of fsspec says what changes with a file."""
BROKEN = (EOFError, zlib.error, lzma.LZMAError, OSError, pyarrow.ArrowException, MemoryError)
"""What reading a file raises where it is cut short, corrupt (a length too, then of any size) or out of reach."""


def open_file(url: str, state: int = 0) -> File:
    """Open a file of rows, at the start or in an earlier state.

    Args:
        url: a path, or a URL of fsspec; its ending says what it is, `.gz` and other compressions may follow.
        state: `state` of a `File` of this URL.

    Raises:
        UserError: there is no such file, or it is of an unknown kind, or another one than its ending says.
    """
    ending, compression = endings(url)
    if ending not in KINDS:
        raise UserError(
            f"{url}: unknown kind of file {ending!r}; known are {', '.join(KINDS)}, compressed "
            f"({', '.join(COMPRESSIONS)}) or not"
        )
    try:
        return KINDS[ending](partial(_open, url, compression), state)
    except FileNotFoundError as error:
        raise UserError(f"{url}: no such file") from error
    except (*BROKEN, ValueError, RecursionError) as error:
        raise UserError(f"{url}: cannot be read as {ending}: {error}") from error


def endings(url: str) -> tuple[str, str]:
    """Return the endings that say what a file is and how it is compressed, in lower case; the second may be empty."""
    path = PurePosixPath(url.partition("?")[0].lower())
    if path.suffix in COMPRESSIONS:
        return PurePosixPath(path.stem).suffix, path.suffix
    return path.suffix, ""


@contextmanager
def reading(location: str) -> Iterator[None]:
    """Say where a file is broken.

    Raises:
        UserError: it is, at this location.
    """
    try:
        yield
    except BROKEN as error:
        raise UserError(
            f"{location}: the file is broken or cut short from here on: {str(error) or 'a length in it is wrong'}"
        ) from error


def version_of(url: str) -> list[Any] | None:
    """Return what changes with the content of a file: size, times, checksums; None where only its size is known."""
    system, inside = url_to_fs(url)
    info = system.info(inside)
    known = [str(info.get(key)) for key in VERSIONS]
    return [info.get("size"), *known] if any(info.get(key) for key in VERSIONS) else None


def _open(url: str, compression: str) -> Any:
    if compression != ".zst":
        return fsspec.open(url, "rb", compression=COMPRESSIONS.get(compression)).open()
    return io.BufferedReader(pyarrow.CompressedInputStream(fsspec.open(url, "rb").open(), "zstd"))
