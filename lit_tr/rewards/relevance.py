"""How near a response is to its prompt or to a reference answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lit_tr.errors import UserError
from lit_tr.rewards.base import Candidate, Fitted, reference_answers
from lit_tr.rewards.similarity import encoder_of, similarities


@dataclass
class Relevance(Fitted):
    """The cosine of the vectors of a response and of its reference answer, or of its prompt, in [-1, 1].

    Args:
        to: `answer` or `prompt`. A response without a reference answer then has no score.
        encoder: folder or hub id of a model, as for `WhiteBox`; None takes TF-IDF of the texts that are scored.
        device: where the encoder runs; None takes a GPU if there is one.
        batch_size: texts that are encoded at once.
        fitted: a file that `save` wrote, of the sample by which TF-IDF weighs words.

    Raises:
        UserError: `to` is something else, the encoder cannot be loaded, or scikit-learn is missing.
    """

    to: Literal["answer", "prompt"] = "answer"
    encoder: str | None = None
    device: str | None = None
    batch_size: int = 32
    fitted: str | None = None

    def __post_init__(self) -> None:
        if self.to not in ("answer", "prompt"):
            raise UserError(f"Relevance: to answer or prompt, not {self.to!r}")
        self._encoder = encoder_of(self.encoder, self.device, self.batch_size)
        if self.fitted:
            self.load(self.fitted)

    @property
    def name(self) -> str:
        """What is compared with."""
        return f"relevance to {self.to}"

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the cosine for each response; NaN where there is no reference answer.

        Raises:
            UserError: no row has a reference answer.
        """
        others = self._others(candidates)
        known = [number for number, other in enumerate(others) if other is not None]
        pairs = [(others[number] or "", candidates[number].response) for number in known]
        found = dict(zip(known, similarities(self._encoder, pairs, cosine=True), strict=True))
        return [found.get(number, math.nan) for number in range(len(candidates))]

    def fit(self, candidates: Sequence[Candidate]) -> "Relevance":
        """Weigh words from now on by how rare they are in these texts."""
        others = [other for other in self._others(candidates) if other is not None]
        self._encoder.fit([*others, *(one.response for one in candidates)])
        return self

    def state(self) -> Any:
        """Return the encoder's statistics."""
        return self._encoder.state()

    def restore(self, state: Any) -> None:
        """Take the encoder's statistics."""
        self._encoder.restore(state)

    def _others(self, candidates: Sequence[Candidate]) -> Sequence[str | None]:
        if self.to == "answer":
            return reference_answers(self.name, candidates)
        return [one.query for one in candidates]
