"""Formats of rows with several responses that are rated or ranked: raw row -> one Example, or one for each pair."""

import random
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

from lit_tr.data.example import Example, Row, as_chat, items, number, response, string, value_of
from lit_tr.errors import BadRowError, UserError

Rated = list[tuple[str, float]]
Pairs = Literal["best_worst", "best_random", "all"]

MOST_RESPONSES = 64
"""More in one row, a mistake surely, would make thousands of pairs."""


@dataclass(frozen=True)
class UltraFeedback:
    """`{"instruction": str, "completions": [{"response": str, "annotations": {aspect: {"Rating": "4"}}}, ...]}`.

    Cui et al. 2023 (arXiv 2310.01377). A response without a rating (`"N/A"`) is left out, and so are pairs of equally
    rated ones. The margin is the difference of the scores.

    Args:
        score: `mean` takes the mean over the aspects, `overall` the completion's `overall_score` (in the published data
            some of the worst responses have a 10 there), `fine-grained` its `fine-grained_score`; any other word is an
            aspect, such as `helpfulness`.
        pairs: the `best_worst`; `best_random`, the best with one of the others, the same one whenever the row comes; or
            `all`, an example for each two.
        chat: make messages of instruction and responses, for a tokenizer with a chat template; False leaves plain text.
    """

    score: str = "mean"
    pairs: Pairs = "best_worst"
    chat: bool = True

    def __post_init__(self) -> None:
        _check_pairs(self)

    def __call__(self, row: Row) -> list[Example]:
        """Return the pairs of a row."""
        completions = items(row, "completions", dict)
        scored = [(response(one, "response"), score) for one in completions if (score := self._score(one)) is not None]
        return _examples(string(row, "instruction"), scored, self.pairs, self.chat)

    def _score(self, completion: Row) -> float | None:
        if self.score in ("overall", "fine-grained"):
            return number(completion.get(f"{self.score}_score"))
        aspects = value_of(completion, "annotations")
        if not isinstance(aspects, dict):
            raise BadRowError("'annotations' is not an object with aspects", repr(aspects)[:80])
        wanted = aspects.values() if self.score == "mean" else [aspects.get(self.score)]
        ratings = [number(one.get("Rating")) for one in wanted if isinstance(one, dict)]
        known = [rating for rating in ratings if rating is not None]
        return sum(known) / len(known) if known else None


@dataclass(frozen=True)
class CodeUltraFeedback:
    """`{"instruction": str, "responses": [{"model", "response"}, ...], "annotations": [{"model", "rating"}, ...]}`.

    Weyssow et al. 2024 (arXiv 2403.09032): the responses are rated by the one aspect that the row's `preference` names.
    A rating belongs to the response of its model. Else as `UltraFeedback`.

    Args:
        pairs: `best_worst`, `best_random` or `all`.
        chat: make messages of instruction and responses; False leaves plain text.
    """

    pairs: Pairs = "best_worst"
    chat: bool = True

    def __post_init__(self) -> None:
        _check_pairs(self)

    def __call__(self, row: Row) -> list[Example]:
        """Return the pairs of a row."""
        annotations = items(row, "annotations", dict)
        ratings = {string(one, "model"): number(one.get("rating")) for one in annotations}
        scored = [
            (response(one, "response"), rating)
            for one in items(row, "responses", dict)
            if (rating := ratings.get(string(one, "model"))) is not None
        ]
        return _examples(string(row, "instruction"), scored, self.pairs, self.chat)


@dataclass(frozen=True)
class Ranking:
    """`{"prompt": str, "responses": [str, ...], "ranks": [number, ...]}`, rank 1 the best; or the best one first.

    Without `ranks` the responses stand in order, the best one first; columns alone cannot tell that, so this format is
    then to be named. `{"prompt": str, "answers": [{"answer": str, "rank": number}, ...]}`, as Nectar has it, is read
    too. The margin is the difference of the ranks; of equal ranks there is no pair.

    Args:
        pairs: `best_worst`, `best_random` or `all`.
        chat: make messages of prompt and responses; False leaves plain text.
    """

    pairs: Pairs = "best_worst"
    chat: bool = False

    def __post_init__(self) -> None:
        _check_pairs(self)

    def __call__(self, row: Row) -> list[Example]:
        """Return the pairs of a row."""
        if row.get("answers") is not None:
            answers = items(row, "answers", dict)
            texts, ranks = [string(one, "answer") for one in answers], [one.get("rank") for one in answers]
        else:
            texts = items(row, "responses", str)
            ranks = list(range(len(texts))) if row.get("ranks") is None else row["ranks"]
        ranked = [number(rank) for rank in ranks] if isinstance(ranks, list) else []
        if len(ranked) != len(texts) or None in ranked:
            raise BadRowError("the ranks are not a number for each response", repr(ranks)[:80])
        scored = [(text, -rank) for text, rank in zip(texts, ranked, strict=True) if rank is not None]
        return _examples(string(row, "prompt"), scored, self.pairs, self.chat)


def _check_pairs(format: Any) -> None:
    if format.pairs not in ("best_worst", "best_random", "all"):
        raise UserError(f"{type(format).__name__}: pairs must be best_worst, best_random or all, not {format.pairs!r}")


def _examples(prompt: str, rated: Rated, pairs: Pairs, chat: bool) -> list[Example]:
    if len(rated) > MOST_RESPONSES:
        raise BadRowError(f"more than {MOST_RESPONSES} responses", str(len(rated)))
    if not all(text.strip() for text, _ in rated):
        raise BadRowError("a response is empty")
    down = sorted(rated, key=lambda one: -one[1])
    candidates = [(a, b) for a, b in combinations(down, 2) if a[1] > b[1] and a[0] != b[0]]
    if not candidates:
        raise BadRowError("no response is rated above another one")
    return [_example(prompt, a, b, chat) for a, b in _picked(candidates, pairs, repr((prompt, rated)))]


def _picked(candidates: list[Any], pairs: Pairs, seed: str) -> list[Any]:
    """Return those pairs of `((text, score), (text, score))`, best first, that are asked for."""
    if pairs == "all":
        return candidates
    if pairs == "best_worst":
        return [max(candidates, key=lambda pair: pair[0][1] - pair[1][1])]
    with_best = [pair for pair in candidates if pair[0] is candidates[0][0]]
    return [random.Random(seed).choice(with_best)]


def _example(prompt: str, one: tuple[str, float], other: tuple[str, float], chat: bool) -> Example:
    texts = prompt, one[0], other[0]
    ask, chosen, rejected = as_chat(*texts) if chat else texts
    return Example(ask, chosen, rejected, margin=one[1] - other[1])
