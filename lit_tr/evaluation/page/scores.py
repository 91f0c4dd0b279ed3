"""Scores of responses that came without one, by a function."""

from collections.abc import Callable
from dataclasses import replace
from pydoc import locate
from typing import Any

from lit_tr.errors import UserError
from lit_tr.evaluation.page.found import Found, Row
from lit_tr.evaluation.page.reader import as_text

Judge = Callable[[str, str], float]


def judge_of(path: str) -> Judge:
    """Return the function that an import path names; of a class an instance.

    Raises:
        UserError: there is no such function.
    """
    found: Any = locate(path)
    made = found() if isinstance(found, type) else found
    if not callable(made):
        raise UserError(f"--judge {path}: there is no such function; give its import path, such as mine.judge")
    return made


def with_scores(found: Found, judge: Judge) -> Found:
    """Return what was found, with a judge's score of each response that has none."""

    def scored(row: Row) -> Row:
        if row.get("score") is not None:
            return row
        return {**row, "score": float(judge(as_text(row["prompt"]), row["response"]))}

    return replace(found, responses={name: [scored(row) for row in rows] for name, rows in found.responses.items()})
