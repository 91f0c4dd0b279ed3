"""`lit-tr configs`: the configurations that ship with lit_tr, which `--config NAME` finds too."""

import re
import shutil
import textwrap
from itertools import takewhile
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from lit_tr.commands.parsing import PlainParser, nearest
from lit_tr.errors import UserError

PACKAGE = Path(__file__).parents[1]
FOLDER = next(folder for folder in (PACKAGE / "configs", PACKAGE.parent / "configs") if folder.is_dir())
"""In an installed wheel, or in the repository."""


def run(args: list[str]) -> None:
    """List the shipped configurations, or print one: `lit-tr configs`, `lit-tr configs show NAME`."""
    parser = PlainParser(prog="lit-tr configs", description="List the configurations that ship with lit_tr.")
    parser.add_argument("show", nargs="?", choices=["show"], help="print one")
    parser.add_argument("name", nargs="?", help="the one to print")
    given = parser.parse_args(args)
    if given.name:
        print(shipped(given.name).read_text(), end="")
    else:
        files = _files()
        width = max(map(len, files)) + 2
        columns = max(shutil.get_terminal_size(fallback=(1000, 24)).columns, width + 20)  # a line each in a pipe
        for name, file in files.items():
            print(textwrap.fill(f"{name:<{width}}{_about(file)}", columns, subsequent_indent=" " * width))


def shipped(name: str) -> Path:
    """Return the file of a shipped configuration; a `UserError` where there is none of the name."""
    files = _files()
    if name not in files:
        raise UserError(
            f"--config: there is no file {name}, and no shipped configuration of this name{nearest(name, [*files])}"
        )
    return files[name]


def with_shipped(args: list[str]) -> list[str]:
    """Return arguments with the files of shipped configurations in the place of their names.

    Raises:
        UserError: there is no file or configuration of a name, or a file is no YAML.
    """
    found = list(args)
    for i, arg in enumerate(args):
        name = arg.removeprefix("--config=") if arg.startswith("--config=") else arg
        is_value = arg != name or (i > 0 and args[i - 1] == "--config")
        if is_value and not re.search(r"\.(ya?ml|json)$", name) and not Path(name).exists():
            found[i] = arg[: len(arg) - len(name)] + str(shipped(name))
        elif is_value and Path(name).is_file():
            _check_syntax(Path(name))
    return found


def _check_syntax(file: Path) -> None:
    try:
        yaml.compose(file.read_text())
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise UserError(f"--config: {file}{line}: {error.problem} {error.context or ''}".rstrip()) from error


def _about(file: Path) -> str:
    """Return the first sentence of a configuration's head."""
    head = takewhile(lambda line: line.startswith("# "), file.read_text().splitlines())
    text = " ".join(line.removeprefix("# ").strip() for line in head if not line.startswith("#   "))
    return re.split(r"(?<=\.)\s+", text)[0]


def _files() -> dict[str, Path]:
    return {file.relative_to(FOLDER).with_suffix("").as_posix(): file for file in sorted(FOLDER.rglob("*.yaml"))}
