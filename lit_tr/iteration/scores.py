"""Scores of candidates, in a file that is gone on with after any stop."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lit_tr.errors import UserError
from lit_tr.evaluation.responses import Response, append, read
from lit_tr.evaluation.scored import with_score
from lit_tr.rewards import Scorer, explain

AT_ONCE = 64
"""Candidates that are scored before they are written."""


def kept(path: Path) -> list[Response]:
    """Return the candidates that are scored in a file; none where there is no file."""
    return read(path) if path.exists() else []


def complete_scores(
    path: Path,
    candidates: Sequence[Response],
    scorer: Scorer,
    tell: Callable[[int], object] = lambda more: None,
    statistics: Path | None = None,
) -> list[Response]:
    """Score the candidates that a file has not; each part is on the disk before the next one begins.

    A scorer that takes statistics of a sample takes those of a file, or of all candidates, and then writes the file.

    Args:
        path: file of the scored candidates.
        candidates: the candidates.
        scorer: scores them; NaN is kept as no score.
        tell: called with the number of further scored ones, time and again.
        statistics: the file of the statistics; by default one beside the file of scores.

    Returns:
        The candidates with scores, in their order.

    Raises:
        UserError: the file holds scores of other candidates, the scorer fails, or no candidate has a score.
    """
    done = {one.key: one for one in kept(path)}
    texts = {one.key: one.response for one in candidates}
    if strange := [key for key, one in done.items() if texts.get(key) != one.response]:
        raise UserError(f"{path}: it has a score of a response that is no candidate, {strange[0]}: remove the file")
    if hasattr(scorer, "fit"):
        with _in_one_message(scorer, path):
            _fitted(scorer, statistics or path.with_suffix(".statistics.json"), candidates)
    missing = [one for one in candidates if one.key not in done]
    for i in range(0, len(missing), AT_ONCE):
        part = missing[i : i + AT_ONCE]
        with _in_one_message(scorer, path):
            found = explain(scorer, [one.candidate for one in part])
            made = [with_score(one, features) for one, features in zip(part, found, strict=True)]
        append(path, made)
        done |= {one.key: one for one in made}
        tell(len(made))
    if all(one.score is None for one in done.values()):
        path.unlink()
        raise UserError(
            f"reward {scorer.name}: it gives no score to any of {len(candidates)} responses. Fix it, and the same "
            "command scores them again"
        )
    return [done[one.key] for one in candidates]


@contextmanager
def _in_one_message(scorer: Scorer, path: Path) -> Iterator[None]:
    """Make one message of what a scorer raises."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"reward {scorer.name}: it failed ({type(error).__name__}: {error}). Its scores so far are in {path}: fix "
            "it, and the same command goes on. LIT_TR_TRACEBACK=1 shows where it failed"
        ) from error


def _fitted(scorer: Any, path: Path, candidates: Sequence[Response]) -> None:
    """Give a scorer the statistics of a file, or those of the candidates, which become the file."""
    if getattr(scorer, "fitted", None):
        return
    if path.exists():
        scorer.load(path)
        return
    scorer.fit([one.candidate for one in candidates])
    if scorer.state() is not None:  # as of an encoder that needs none
        partial = path.with_suffix(".partial")
        scorer.save(partial)
        partial.replace(path)
