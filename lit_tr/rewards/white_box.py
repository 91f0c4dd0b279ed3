"""A reward that one can read: a product of features of a response."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lit_tr.errors import UserError
from lit_tr.rewards.base import Candidate, Features, Fitted
from lit_tr.rewards.similarity import encoder_of, similarities

OPEN, CLOSED = {"open", "openended"}, {"closed", "closedended", "constrained"}
STOPS = ("\n\n\n\n", "\n\n--", "\n\n____")
PUBLISHED_TOP = 3.5
"""The dot product of embeddings by facebook/contriever that is mapped to the score of `max_tokens`."""


def by_kind(candidate: Candidate) -> bool:
    """Return whether a row says that it is closed-ended: `closed` or `CONSTRAINED`; `open`, `OPENENDED` or nothing.

    Raises:
        UserError: it says something else.
    """
    kind = re.sub("[^a-z]", "", (candidate.kind or "open").lower())
    if kind not in OPEN | CLOSED:
        raise UserError(f"kind {candidate.kind!r}: a row is open (OPENENDED) or closed (CONSTRAINED)")
    return kind in CLOSED


def has_answer(candidate: Candidate) -> bool:
    """Return whether a row has a reference answer: then it counts as closed-ended."""
    return candidate.reference_answer is not None


def never(candidate: Candidate) -> bool:
    """Return that no row is closed-ended: no branches."""
    return False


@dataclass
class WhiteBox(Fitted):
    """The white-box reward of Kim and Seo 2024 (arXiv 2402.03469), by the code of its authors.

    The code is `reward_model.py` of https://github.com/naver-ai/rethinking-proxy-reward. But for its template one thing
    differs: the prompt of a chat is its last message here, and there all turns of the user, joined.

    An open-ended response gets `length * relevance * repetition`, a closed-ended one `scaled relevance * repetition`:

    - length incentive: tokens / 100. A token is a run of letters and digits, or one of other signs;
    - relevance: dot product of the embeddings of response and prompt, or of response and reference answer where the row
      is closed-ended. There it is scaled linearly, so that `top` gives `max_tokens` / 100;
    - repetition penalty: different trigrams / trigrams, 1 where there are none.

    The first three arguments are the exponents of these factors: 1 is the published form, 0 switches a factor off, and
    a negative relevance keeps its sign. Without relevance a closed-ended response is scored as an open-ended one is.

    What that form leaves open to exploitation can be closed: dot products have no bound (`cosine`), a copy of the
    prompt is as relevant as can be (`copying`), and length pays without end (`longest`).

    A closed-ended row without a reference answer has no score.

    Args:
        length: exponent of the length incentive.
        relevance: exponent of the relevance.
        repetition: exponent of the repetition penalty.
        copying: exponent of one more factor, the share of trigrams that are not in the prompt; 0 leaves it out.
        is_closed: says of a response whether its row is closed-ended: `by_kind`, by the column `kind` or `qtype`;
            `has_answer`; `never`; or a function of your own.
        encoder: folder or hub id of the model whose embeddings are compared, see `Pooled`; facebook/contriever is the
            published one. None takes TF-IDF of the texts that are scored.
        cosine: compare by the cosine in the place of the dot product; of TF-IDF they are the same.
        longest: so many tokens at most count for the length incentive.
        max_tokens: most tokens that the policy may generate.
        top: relevance of closed-ended rows that is scaled to the score of `max_tokens`; None takes 3.5, as published,
            and 1 where the relevance is a cosine.
        stops: texts that end a response; what follows counts neither for its length nor for its trigrams. The published
            code adds the roles of its template.
        device: where the encoder runs; None takes a GPU if there is one.
        batch_size: texts that are encoded at once.
        fitted: a file that `save` wrote, of the sample by which TF-IDF weighs words.

    Raises:
        UserError: an exponent is negative, the encoder cannot be loaded, or scikit-learn is missing.
    """

    length: float = 1.0
    relevance: float = 1.0
    repetition: float = 1.0
    copying: float = 0.0
    is_closed: Callable[[Candidate], bool] = by_kind
    encoder: str | None = None
    cosine: bool = False
    longest: int | None = None
    max_tokens: int = 512
    top: float | None = None
    stops: Sequence[str] = STOPS
    device: str | None = None
    batch_size: int = 32
    fitted: str | None = None

    def __post_init__(self) -> None:
        for name in ("length", "relevance", "repetition", "copying"):
            if not getattr(self, name) >= 0:
                raise UserError(f"WhiteBox: {name} is an exponent, at least 0, not {getattr(self, name)}")
        self._encoder = encoder_of(self.encoder, self.device, self.batch_size) if self.relevance else None
        if self.fitted:
            self.load(self.fitted)

    @property
    def name(self) -> str:
        """The class."""
        return type(self).__name__

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the reward of each response."""
        return [one["score"] for one in self.explain(candidates)]

    def explain(self, candidates: Sequence[Candidate]) -> list[Features]:
        """Return the reward of each response as `score`, with the features that it is the product of.

        They are `length`, `relevance` before it is scaled, `repetition`, `copying` and `closed`, which is 0 or 1; what
        is switched off is left out.
        """
        closed = [self.is_closed(one) for one in candidates]
        relevances = self._relevances(candidates, closed)
        both = zip(candidates, closed, relevances, strict=True)
        return [self._features(one, is_closed, relevance) for one, is_closed, relevance in both]

    def fit(self, candidates: Sequence[Candidate]) -> "WhiteBox":
        """Weigh words from now on by how rare they are in these prompts, responses and answers."""
        if self._encoder:
            texts = ((one.query, one.response, one.reference_answer) for one in candidates)
            self._encoder.fit([text for those in texts for text in those if text is not None])
        return self

    def state(self) -> Any:
        """Return the encoder's statistics."""
        return self._encoder and self._encoder.state()

    def restore(self, state: Any) -> None:
        """Take the encoder's statistics."""
        if self._encoder:
            self._encoder.restore(state)

    def _relevances(self, candidates: Sequence[Candidate], closed: Sequence[bool]) -> list[float]:
        if self._encoder is None:
            return [math.nan] * len(candidates)
        pairs = zip(candidates, closed, strict=True)
        others = [one.reference_answer if is_closed else _one_line(one.query) for one, is_closed in pairs]
        known = [number for number, other in enumerate(others) if other is not None]
        asked = [(others[number] or "", candidates[number].response) for number in known]
        found = dict(zip(known, similarities(self._encoder, asked, self.cosine), strict=True))
        return [found.get(number, math.nan) for number in range(len(candidates))]

    def _features(self, candidate: Candidate, closed: bool, relevance: float) -> Features:
        tokens = wordpunct(self._cut(candidate.response))
        trigrams, prompt = ngrams(tokens), {*ngrams(wordpunct(candidate.query))}
        of = {
            "length": min(len(tokens), self.longest or math.inf) / 100,
            "relevance": relevance,
            "repetition": len({*trigrams}) / len(trigrams) if trigrams else 1.0,
            "copying": 1 - sum(one in prompt for one in trigrams) / max(len(trigrams), 1),
        }
        factors = dict(of)
        if closed and self.relevance:
            factors |= {"length": 1.0, "relevance": relevance / self._top * self.max_tokens / 100}
        used = [name for name in of if getattr(self, name)]
        score = math.prod(_power(factors[name], getattr(self, name)) for name in used)
        return {"score": score, **{name: of[name] for name in used}, "closed": float(closed)}

    @property
    def _top(self) -> float:
        return self.top or (1.0 if self.cosine or self.encoder is None else PUBLISHED_TOP)

    def _cut(self, response: str) -> str:
        text = response.strip("\n ")
        return text[: min((at for stop in self.stops if (at := text.find(stop)) >= 0), default=len(text))].strip("\n ")


def wordpunct(text: str) -> list[str]:
    """Return the runs of letters, digits and underscores of a text, and those of other signs, as NLTK's `wordpunct`.

    Examples:
        >>> wordpunct("It's cold...")
        ['It', "'", 's', 'cold', '...']
    """
    return re.findall(r"\w+|[^\w\s]+", text)


def ngrams(tokens: Sequence[str], n: int = 3) -> list[tuple[str, ...]]:
    """Return the n-grams of some tokens, one after the other."""
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _power(value: float, exponent: float) -> float:
    return math.copysign(abs(value) ** exponent, value)
