"""The pages of the documentation, and what stands in them."""

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
PLACEHOLDERS = {"run.yaml": "configs/quickstart.yaml"}
"""Names of a user's own configuration, and what is parsed in their place."""


def name(page):
    return str(page.relative_to(ROOT / "docs"))


def blocks(page, language):
    """The blocks of code of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def spans(page):
    """The inline code of a page."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE))


def commands(page):
    """The arguments of each `lit-tr` in the shell blocks of a page."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    starts = [[word.endswith("lit-tr") for word in line] for line in words]
    return [line[start.index(True) + 1 :] for line, start in zip(words, starts, strict=True) if any(start)]
