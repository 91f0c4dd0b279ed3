"""Prompts of judges: text files with slots, those of the package or copies of one's own."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lit_tr.errors import UserError

FOLDER = Path(__file__).parent / "prompts"
CRITERIA = ("coherence", "correctness", "detail", "helpfulness", "harmlessness")
"""The criteria of the package, beside `overall`."""
ROLE = re.compile(r"^### (system|user|assistant)[ \t]*\n", re.MULTILINE)
SLOT = re.compile(r"\{([a-z_]+)\}")

Messages = tuple[tuple[str, str], ...]
"""Role and text of each message."""


@dataclass(frozen=True)
class Template:
    """A prompt with slots.

    Args:
        messages: role and text of each message; slots are written `{name}`.
        path: the file it was read from.
    """

    messages: Messages
    path: Path

    @property
    def slots(self) -> set[str]:
        """The slots that it has."""
        return {name for _, text in self.messages for name in SLOT.findall(text)}

    def fill(self, values: Mapping[str, str]) -> Messages:
        """Return the messages with slots filled in one pass: what a response holds is no slot."""
        return tuple((role, SLOT.sub(lambda found: values[found[1]], text).strip()) for role, text in self.messages)


class Criterion(NamedTuple):
    """What to judge by: its name, in files and tables, and its text, for the slot `{criterion}`."""

    name: str
    text: str


def template(name: str, needed: set[str], allowed: set[str]) -> Template:
    """Read a prompt of the package by name, or a file of one's own by path.

    A file is messages below lines `### user`, `### system` or `### assistant`.

    Raises:
        UserError: there is no such prompt, it has no message, a needed slot is missing, or a slot is unknown.
    """
    path = _found(name, FOLDER, "prompt")
    before, *parts = ROLE.split(_read(path))
    if before.strip() or not parts:
        raise UserError(f"{path}: a prompt begins with a line such as `### user`, and its text below that")
    made = Template(tuple(zip(parts[::2], parts[1::2], strict=True)), path)
    if missing := needed - made.slots:
        raise UserError(f"{path}: the slot {{{min(missing)}}} is missing")
    if unknown := made.slots - needed - allowed:
        known = ", ".join(f"{{{slot}}}" for slot in sorted(needed | allowed))
        raise UserError(f"{path}: {{{min(unknown)}}} is no slot; slots are {known}")
    return made


def criterion(name: str) -> Criterion:
    """Read a criterion of the package by name, or a text file of one's own by path; the file's name is its name.

    Raises:
        UserError: there is no such criterion, or it is empty.
    """
    path = _found(name, FOLDER / "criteria", "criterion")
    text = _read(path).strip()
    if not text:
        raise UserError(f"{path}: the criterion is empty")
    return Criterion(path.stem, text)


def copy_prompts(folder: str | Path) -> Path:
    """Copy the prompts and criteria of the package into a new folder, to be changed.

    Raises:
        UserError: the folder is there.
    """
    if Path(folder).exists():
        raise UserError(f"{folder}: it is there already; give a new folder")
    return Path(shutil.copytree(FOLDER, folder))


def _found(name: str, folder: Path, what: str) -> Path:
    given = Path(name)
    if given.suffix:
        return given
    if not (folder / f"{name}.txt").exists():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.txt")))
        raise UserError(f"there is no {what} {name!r}: give one of {known}, or the path of a .txt file of your own")
    return folder / f"{name}.txt"


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: it cannot be read as text ({error})") from error
