"""The evaluations of a run: `evaluation.jsonl` in its folder, a line for each policy that was evaluated."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

EVALUATIONS = "evaluation.jsonl"
ROUNDS = "iterate.json"
"""File of the options of rounds, in their folder."""


def read(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a file by step; none where there is no file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def add(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Add lines to a file; one of the same step and label takes the place of what was there.

    The file is replaced as a whole, so it is never seen half written.
    """
    kept = {(line["step"], line["label"]): line for line in (*read(file), *lines)}
    write(file, sorted(kept.values(), key=lambda line: line["step"]))


def write(file: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write a file anew; a figure that is not a number is left out, for JSON has none."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    known = ({name: value for name, value in line.items() if value == value} for line in lines)
    partial.write_text("".join(json.dumps(line) + "\n" for line in known))
    partial.replace(file)
