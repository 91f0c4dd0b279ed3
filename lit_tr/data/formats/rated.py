"""Formats of rows with several responses that are rated or ranked: raw row -> one Example, or one for each pair.

A response that is empty or has no rating is left out. The margin is the difference of the ratings.
"""

import random
from abc import ABC, abstractmethod
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal, NamedTuple

from lit_tr.data.example import Example, Row
from lit_tr.data.formats.fields import example, items, number, string, value_of
from lit_tr.errors import BadRowError, UserError

Pairs = Literal["best_worst", "best_random", "all"]
Given = tuple[Any, float | None, Any]
"""Text, rating and its reason, as they stand in a row."""

MOST_RESPONSES = 64
"""More in one row, a mistake surely, would make thousands of pairs."""


class Rated(NamedTuple):
    """A response of a row with its rating, and why it has that, where the row says so."""

    text: str
    rating: float
    why: str | None = None


class RatedFormat(ABC):
    """A format of rows with several responses that are rated or ranked."""

    pairs: Pairs

    def __post_init__(self) -> None:
        if self.pairs not in ("best_worst", "best_random", "all"):
            raise UserError(f"{type(self).__name__}: pairs must be best_worst, best_random or all, not {self.pairs!r}")

    def __call__(self, row: Row) -> list[Example]:
        """Return the pairs of a row."""
        prompt, rated = self.rated(row)
        return _examples(row, prompt, rated, self.pairs)

    def rated(self, row: Row) -> tuple[str, list[Rated]]:
        """Return the prompt of a row, and those of its responses that have text and a rating.

        Raises:
            BadRowError: the row does not fit, or has fewer than two of them.
        """
        prompt, rated = self._read(row)
        if len(rated) > MOST_RESPONSES:
            raise BadRowError(f"more than {MOST_RESPONSES} responses", str(len(rated)))
        if not all(text is None or isinstance(text, str) for text, *_ in rated):
            raise BadRowError("a response is not text")
        known = [
            Rated(text, rating, why if isinstance(why, str) else None)
            for text, rating, why in rated
            if rating is not None and text and text.strip()
        ]
        if len(known) < 2:
            raise BadRowError("fewer than two responses have text and a rating", f"{len(known)} of {len(rated)}")
        return prompt, known

    @abstractmethod
    def _read(self, row: Row) -> tuple[str, list[Given]]:
        """Return the prompt of a row, and all of its responses."""


@dataclass(frozen=True)
class UltraFeedback(RatedFormat):
    """An instruction and completions, each rated by several aspects (openbmb/UltraFeedback, arXiv 2310.01377).

    A completion is `{"response": str, "annotations": {aspect: {"Rating": "4"}}}`; a rating of `"N/A"` is none.

    Args:
        score: `mean` takes the mean over the aspects, `overall` the completion's `overall_score` (in the published data
            some of the worst responses have a 10 there), `fine-grained` its `fine-grained_score`; any other word is an
            aspect, such as `helpfulness`.
        pairs: the `best_worst`; `best_random`, the best with one of the others, the same one whenever the row comes; or
            `all`, an example for each two.
    """

    score: str = "mean"
    pairs: Pairs = "best_worst"

    def _read(self, row: Row) -> tuple[str, list[Given]]:
        completions = [one for one in items(row, "completions", dict) if one]
        rated = [(one.get("response"), self._score(one), one.get("critique")) for one in completions]
        return string(row, "instruction"), rated

    def _score(self, completion: Row) -> float | None:
        if self.score in ("overall", "fine-grained"):
            return number(completion.get(f"{self.score}_score"))
        aspects = completion.get("annotations")
        if aspects is None:
            return None
        if not isinstance(aspects, dict):
            raise BadRowError("'annotations' is not an object with aspects", repr(aspects)[:80])
        wanted = aspects.values() if self.score == "mean" else [aspects.get(self.score)]
        ratings = [number(one.get("Rating")) for one in wanted if isinstance(one, dict)]
        known = [rating for rating in ratings if rating is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class CodeUltraFeedback(RatedFormat):
    """An instruction, responses, and a rating for each model (coseal/CodeUltraFeedback, arXiv 2403.09032).

    The responses are rated by the one aspect that the row's `preference` names. A rating belongs to the response of its
    model.

    Args:
        pairs: `best_worst`, `best_random` or `all`.
    """

    pairs: Pairs = "best_worst"

    def _read(self, row: Row) -> tuple[str, list[Given]]:
        annotations = {string(one, "model"): one for one in items(row, "annotations", dict) if one}
        responses = [one for one in items(row, "responses", dict) if one]
        of_each = [(one, annotations.get(string(one, "model"), {})) for one in responses]
        rated = [(one.get("response"), number(of.get("rating")), of.get("rationale")) for one, of in of_each]
        return string(row, "instruction"), rated


@dataclass(frozen=True)
class Ranking(RatedFormat):
    """A prompt and responses with their `ranks`, 1 the best, or answers with a rank each (berkeley-nest/Nectar).

    Without `ranks` the responses stand in order, the best one first; columns alone cannot tell that, so this format is
    then to be named. The margin is the difference of the ranks; of equal ranks there is no pair.

    Args:
        pairs: `best_worst`, `best_random` or `all`.

    Examples:
        >>> [found] = Ranking()({"prompt": "1 + 1?", "responses": ["3", "2", "11"], "ranks": [2, 1, 3]})
        >>> found.chosen, found.rejected, found.margin
        ('2', '11', 2.0)
    """

    pairs: Pairs = "best_worst"

    def _read(self, row: Row) -> tuple[str, list[Given]]:
        if row.get("answers") is not None:
            answers = [one for one in items(row, "answers", dict) if one]
            texts, ranks = [one.get("answer") for one in answers], [one.get("rank") for one in answers]
        else:
            texts = items(row, "responses", str)
            ranks = list(range(len(texts))) if row.get("ranks") is None else row["ranks"]
        return string(row, "prompt"), _zipped(texts, ranks, "ranks", -1)


@dataclass(frozen=True)
class Ratings(RatedFormat):
    """An instruction, generations and a rating for each of them, the highest the best (distilabel's UltraFeedback).

    Args:
        pairs: `best_worst`, `best_random` or `all`.

    Examples:
        >>> row = {"instruction": "1 + 1?", "generations": ["3", "2", "11"], "ratings": [2.0, 5.0, 1.0]}
        >>> [f"{one.chosen} over {one.rejected} by {one.margin}" for one in Ratings(pairs="all")(row)]
        ['2 over 3 by 3.0', '2 over 11 by 4.0', '3 over 11 by 1.0']
    """

    pairs: Pairs = "best_worst"

    def _read(self, row: Row) -> tuple[str, list[Given]]:
        texts, why = items(row, "generations", str), row.get("rationales")
        return string(row, "instruction"), _zipped(texts, value_of(row, "ratings"), "ratings", 1, why)


def _zipped(texts: list[Any], numbers: Any, name: str, sign: int, why: Any = None) -> list[Given]:
    if not isinstance(numbers, list) or len(numbers) != len(texts):
        raise BadRowError(f"the {name} are not one for each response", repr(numbers)[:80])
    known = [number(one) for one in numbers]
    reasons = why if isinstance(why, list) and len(why) == len(texts) else [None] * len(texts)
    signed = [None if one is None else sign * one for one in known]
    return [*zip(texts, signed, reasons, strict=True)]


def _examples(row: Row, prompt: str, rated: list[Rated], pairs: Pairs) -> list[Example]:
    """Return an example for each pair that is asked for."""
    down = sorted(rated, key=lambda one: -one.rating)
    candidates = [(a, b) for a, b in combinations(down, 2) if a.rating > b.rating and a.text != b.text]
    if not candidates:
        raise BadRowError("no response is rated above another one")
    picked = _picked(candidates, pairs, repr((prompt, [(one.text, one.rating) for one in rated])))
    return [example(row, prompt, a.text, b.text, margin=a.rating - b.rating) for a, b in picked]


def _picked(candidates: list[Any], pairs: Pairs, seed: str) -> list[Any]:
    """Return those pairs of `((text, score), (text, score))`, best first, that are asked for."""
    if pairs == "all":
        return candidates
    if pairs == "best_worst":
        return [max(candidates, key=lambda pair: pair[0][1] - pair[1][1])]
    with_best = [pair for pair in candidates if pair[0] is candidates[0][0]]
    return [random.Random(seed).choice(with_best)]
