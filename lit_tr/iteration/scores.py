"""Scores of candidates, in a file that is gone on with after any stop."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lit_tr.errors import UserError
from lit_tr.evaluation.responses import Response, append, read
from lit_tr.evaluation.scored import with_score
from lit_tr.iteration.spread import on_devices, shared_out
from lit_tr.rewards import Scorer, explain

AT_ONCE = 64
"""Candidates that are scored before they are written."""


@dataclass(frozen=True)
class Elsewhere:
    """Several processes that score, each on a device of its own.

    Args:
        opened: returns the scorer, as another process can call it.
        devices: a device for each process.
    """

    opened: Callable[[], Scorer]
    devices: Sequence[str]

    def scored(self, name: str, candidates: Sequence[Response], statistics: Path) -> Iterator[list[Response]]:
        """Yield candidates with scores as they come; the processes take the statistics of a file if there is one."""
        parts = shared_out(((one.key, one) for one in candidates), len(self.devices))
        yield from on_devices(name, self.devices, partial(_scored_there, self.opened, statistics), parts)


@dataclass(frozen=True)
class Scoring:
    """A scorer, and the processes that score in the place of this one, if there are some."""

    scorer: Scorer
    elsewhere: Elsewhere | None = None


def kept(path: Path) -> list[Response]:
    """Return the candidates that are scored in a file; none where there is no file."""
    return read(path) if path.exists() else []


def complete_scores(
    path: Path,
    candidates: Sequence[Response],
    scorer: Scorer,
    tell: Callable[[int], object] = lambda more: None,
    statistics: Path | None = None,
    elsewhere: Elsewhere | None = None,
) -> list[Response]:
    """Score the candidates that a file has not; each part is on the disk before the next one begins.

    A scorer that takes statistics of a sample takes those of a file, or of all candidates, and then writes the file.

    Args:
        path: file of the scored candidates.
        candidates: the candidates.
        scorer: scores them; NaN is kept as no score.
        tell: called with the number of further scored ones, time and again.
        statistics: the file of the statistics; by default one beside the file of scores.
        elsewhere: processes that score; None scores in this one, as is done with few candidates.

    Returns:
        The candidates with scores, in their order.

    Raises:
        UserError: the file holds scores of other candidates, the scorer fails, or no candidate has a score.
    """
    done = {one.key: one for one in kept(path)}
    texts = {one.key: one.response for one in candidates}
    if strange := [key for key, one in done.items() if texts.get(key) != one.response]:
        raise UserError(f"{path}: it has a score of a response that is no candidate, {strange[0]}: remove the file")
    statistics = statistics or path.with_suffix(".statistics.json")
    if hasattr(scorer, "fit"):
        with _in_one_message(scorer, path):
            _fitted(scorer, statistics, candidates)
    missing = [one for one in candidates if one.key not in done]
    if elsewhere and missing and len(candidates) > AT_ONCE:  # of all: the batches are the same after any stop
        parts = elsewhere.scored(scorer.name, missing, statistics)
    else:
        parts = _scored(scorer, missing)
    while (made := _next(scorer, path, parts)) is not None:
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


def _next(scorer: Scorer, path: Path, parts: Iterator[list[Response]]) -> list[Response] | None:
    with _in_one_message(scorer, path):
        return next(parts, None)


def _scored(scorer: Scorer, candidates: Sequence[Response]) -> Iterator[list[Response]]:
    """Yield candidates with scores, some at a time."""
    for i in range(0, len(candidates), AT_ONCE):
        part = candidates[i : i + AT_ONCE]
        found = explain(scorer, [one.candidate for one in part])
        yield [with_score(one, features) for one, features in zip(part, found, strict=True)]


def _scored_there(
    opened: Callable[[], Scorer], statistics: Path, device: str, candidates: list[Response]
) -> Iterator[list[Response]]:
    scorer: Any = opened()
    if hasattr(scorer, "fit") and statistics.exists():
        _fitted(scorer, statistics, candidates)
    return _scored(scorer, candidates)


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
