"""From scored candidates to pairs."""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any

from lit_tr.data.example import Example, Row, Text
from lit_tr.errors import BadRowError, UserError
from lit_tr.evaluation.responses import Response, by_prompt


@dataclass(frozen=True)
class ScoredPair:
    """A pair of candidates, and what its scores say.

    Args:
        id: names the prompt.
        prompt: text or messages.
        chosen: the better response.
        rejected: the other one.
        score_chosen: score of the better one, higher than the other's.
        score_rejected: score of the other one.
        confidence: probability that the better one is better.
        policy_chosen: name of the policy that wrote the better one.
        policy_rejected: name of the policy that wrote the other one.
    """

    id: str
    prompt: Text
    chosen: str
    rejected: str
    score_chosen: float
    score_rejected: float
    confidence: float = 1.0
    policy_chosen: str = ""
    policy_rejected: str = ""

    @property
    def row(self) -> dict[str, Any]:
        """The pair as a row of `pairs.jsonl`."""
        return asdict(self)


def scored_pair(row: Row) -> Example:
    """Return the example of a row of `pairs.jsonl`: `format` of the rows that a round trains on.

    The label `sampled` says of each response whether the policy of the round wrote it, not another one beside it.

    Raises:
        BadRowError: the row is none.
    """
    try:
        found = ScoredPair(**row)
    except TypeError as error:
        raise BadRowError("it is no pair of a round", str(error)) from error
    texts = [found.chosen, found.rejected]
    if not isinstance(found.prompt, str):
        chosen, rejected = ([{"role": "assistant", "content": text}] for text in texts)
    else:
        chosen, rejected = texts  # type: ignore[assignment]
    own = [float(not policy.startswith(OTHER)) for policy in (found.policy_chosen, found.policy_rejected)]
    margin = found.score_chosen - found.score_rejected
    return Example(found.prompt, chosen, rejected, margin, found.confidence, {"sampled": (own[0], own[1])})


OTHER = "other: "
"""How the name of a policy begins that responds beside that of the round."""


@dataclass
class Pairs:
    """The pairs of a round, and what became of the rest.

    Args:
        found: the pairs.
        prompts: prompts with candidates.
        unscored: candidates without a score, such as unparsable judgements; they are in no pair.
        too_few: prompts with fewer than two candidates that differ and have a score.
        ties: prompts whose candidates that differ all have one score.
        close: prompts whose pairs all differ by less than `least_margin`.
    """

    found: list[ScoredPair] = field(default_factory=list)
    prompts: int = 0
    unscored: int = 0
    too_few: int = 0
    ties: int = 0
    close: int = 0

    @property
    def counts(self) -> dict[str, int]:
        """The figures of `round.json`."""
        return {"pairs": len(self.found)} | {
            name: getattr(self, name) for name in ("prompts", "unscored", "too_few", "ties", "close")
        }


class Pairing(ABC):
    """Makes pairs of the scored candidates of a prompt."""

    least_margin: float = 0.0
    length_penalty: float = 0.0
    missing_eos_penalty: float = 0.0

    @abstractmethod
    def pick(self, ranked: Sequence[Response]) -> Iterator[tuple[Response, Response]]:
        """Yield pairs, the better one first, of two or more candidates with the best first, not all of one score."""

    def __call__(self, candidates: Sequence[Response]) -> Pairs:
        """Return the pairs of the candidates of all prompts.

        A candidate without a score is in no pair, of candidates of one text the first counts, and no pair is a tie.
        """
        pairs = Pairs()
        for those in by_prompt(candidates).values():
            self._add(pairs, those)
        return pairs

    def _add(self, pairs: Pairs, those: Sequence[Response]) -> None:
        scored = [one for one in those if one.score is not None]
        texts = [one.response.strip() for one in scored]
        differing = [one for i, one in enumerate(scored) if texts.index(texts[i]) == i]
        ranked = sorted(differing, key=self._score, reverse=True)
        pairs.prompts += 1
        pairs.unscored += len(those) - len(scored)
        if len(ranked) < 2:
            pairs.too_few += 1
            return
        if self._score(ranked[0]) == self._score(ranked[-1]):
            pairs.ties += 1
            return
        picked = [both for both in self.pick(ranked) if self._differ(*both)]
        pairs.close += not picked
        pairs.found += [self._pair(*both) for both in picked]

    def _score(self, one: Response) -> float:
        penalty = self.length_penalty * (len(one.response) if one.tokens is None else one.tokens)
        penalty += self.missing_eos_penalty * (one.finished is False)
        return (one.score or 0.0) - penalty

    def _differ(self, better: Response, other: Response) -> bool:
        return (margin := self._score(better) - self._score(other)) > 0 and margin >= self.least_margin

    def _pair(self, better: Response, other: Response) -> ScoredPair:
        scores = self._score(better), self._score(other)
        texts = better.response, other.response
        return ScoredPair(better.id, better.prompt, *texts, *scores, 1.0, better.policy, other.policy)


@dataclass(frozen=True)
class MaxMin(Pairing):
    """The best candidate against the worst, as in Self-Rewarding Language Models (arXiv 2401.10020, Sec. 2.3).

    Args:
        least_margin: pairs whose scores differ by less are left out.
        length_penalty: what each token of a response takes from its score; where tokens are not known, each character.
        missing_eos_penalty: what it takes that a response was cut at `max_new_tokens`: a round trains on it as if it
            had ended there.

    Raises:
        UserError: a number is negative.
    """

    least_margin: float = 0.0
    length_penalty: float = 0.0
    missing_eos_penalty: float = 0.0

    def __post_init__(self) -> None:
        if min(self.least_margin, self.length_penalty, self.missing_eos_penalty) < 0:
            raise UserError(f"{type(self).__name__}: least_margin and penalties must not be negative")

    def pick(self, ranked: Sequence[Response]) -> Iterator[tuple[Response, Response]]:
        """Yield the best one with the worst."""
        yield ranked[0], ranked[-1]


@dataclass(frozen=True)
class MaxRandom(MaxMin):
    """The best candidate against one of the others, at random.

    Args:
        least_margin: as for `MaxMin`.
        length_penalty: as for `MaxMin`.
        missing_eos_penalty: as for `MaxMin`.
        seed: of the choice.
    """

    seed: int = 0

    def pick(self, ranked: Sequence[Response]) -> Iterator[tuple[Response, Response]]:
        """Yield the best one with one of those that are worse by the least margin, if any."""
        worse = [one for one in ranked if self._differ(ranked[0], one)]
        if worse:
            yield ranked[0], random.Random(f"{self.seed} {ranked[0].id}").choice(worse)


@dataclass(frozen=True)
class AllPairs(MaxMin):
    """Each two candidates of unequal scores.

    Args:
        least_margin: as for `MaxMin`.
        length_penalty: as for `MaxMin`.
        missing_eos_penalty: as for `MaxMin`.
    """

    def pick(self, ranked: Sequence[Response]) -> Iterator[tuple[Response, Response]]:
        """Yield each two."""
        yield from combinations(ranked, 2)


def with_confidence(pairs: Pairs, confidences: Iterable[float]) -> Pairs:
    """Return pairs with confidences, in their order."""
    both = zip(pairs.found, confidences, strict=True)
    return replace(pairs, found=[replace(one, confidence=value) for one, value in both])
