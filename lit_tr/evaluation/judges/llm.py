"""Judges that are language models: of pairs, in both orders, and of single responses."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from lit_tr.errors import UserError
from lit_tr.evaluation.answers import Asker, Question
from lit_tr.evaluation.judges.base import Pair, Verdict
from lit_tr.evaluation.judges.reading import preference, rating
from lit_tr.evaluation.judges.templates import Criterion, Template, criterion, template
from lit_tr.evaluation.responses import as_text
from lit_tr.rewards.base import Candidate

PAIR_SLOTS, SCORE_SLOTS = {"prompt", "first", "second"}, {"prompt", "response"}
OPTIONAL = {"criterion", "reference"}


class _Asking:
    """What judges share that ask a language model. They are dataclasses with these fields."""

    asker: Asker
    max_tokens: int
    temperature: float
    draw: int
    top_p: float

    @property
    def name(self) -> str:
        """The model's name."""
        return self.asker.model.name

    def again(self) -> Self:
        """Return the same judge, asked once more: answers of the first time are not taken from the cache."""
        return replace(self, draw=self.draw + 1)  # type: ignore[type-var]

    def question(self, messages: tuple[tuple[str, str], ...]) -> Question:
        """Return the question of some messages; an answer of one token is wanted with log-probs."""
        return Question(messages, self.max_tokens, self.temperature, self.max_tokens == 1, self.draw, self.top_p)


@dataclass
class LLMJudge(_Asking):
    """A language model that says which of two responses is better.

    Args:
        asker: the model and its cache.
        criterion: what to judge by: a name of `lit_tr/evaluation/judges/prompts/criteria`, or a text file's path.
        prompt: a name of `lit_tr/evaluation/judges/prompts`, or a file's path. It needs the slots {prompt}, {first} and
            {second}, and may have {criterion} and {reference}.
        orders: `both` shows each pair twice, with A first and with B first; `one` shows A first alone.
        max_tokens: most tokens of an answer. With 1, the answer is read from the probabilities of A and B as first
            token, where the model tells them; with more, from its text.
        temperature: of the answer.
        draw: number of the answer, to ask the same once more.
        top_p: draw answers from the likeliest tokens that together have at least this probability.

    Raises:
        UserError: there is no such prompt or criterion, or a slot is missing or unknown.
    """

    asker: Asker
    criterion: str = "overall"
    prompt: str = "pairwise"
    orders: Literal["both", "one"] = "both"
    max_tokens: int = 1
    temperature: float = 0.0
    draw: int = 0
    top_p: float = 1.0
    _measure: Criterion = field(init=False, repr=False)
    _template: Template = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._measure, self._template = criterion(self.criterion), template(self.prompt, PAIR_SLOTS, OPTIONAL)
        if self.orders not in ("both", "one"):
            raise UserError(f"orders: both or one, not {self.orders!r}")

    def compare(self, pairs: Sequence[Pair]) -> list[Verdict]:
        """Return a verdict for each pair."""
        questions = [self._question(pair, pair.response_a, pair.response_b) for pair in pairs]
        if self.orders == "both":
            questions += [self._question(pair, pair.response_b, pair.response_a) for pair in pairs]
        said = [preference(answer) for answer in self.asker.ask(questions)]
        first, second = said[: len(pairs)], said[len(pairs) :]
        if not second:
            return [Verdict(ab, unparsable=(int(ab is None), 0)) for ab in first]
        both = zip(first, second, strict=True)
        return [Verdict(ab, ba, (int(ab is None), int(ba is None))) for ab, ba in both]

    def _question(self, pair: Pair, first: str, second: str) -> Question:
        slots = {"prompt": as_text(pair.prompt), "first": first, "second": second, "criterion": self._measure.text}
        if "reference" in self._template.slots:
            slots["reference"] = _reference(pair.reference_answer, f"prompt {pair.id!r}", self._template)
        return self.question(self._template.fill(slots))


@dataclass
class LLMScorer(_Asking):
    """A language model that rates single responses.

    Args:
        asker: the model and its cache.
        criterion: what to judge by, as for `LLMJudge`.
        prompt: a name of `lit_tr/evaluation/judges/prompts`, or a file's path, with the slots {prompt} and {response}.
            It may have {criterion} and {reference}.
        lowest: least rating that the prompt asks for.
        highest: greatest rating.
        max_tokens: most tokens of an answer. With 1 and ratings below 10, the rating is the mean over the digits'
            probabilities as first token, where the model tells them.
        temperature: of the answer.
        draw: number of the answer, to ask the same once more.
        top_p: draw answers from the likeliest tokens that together have at least this probability.

    Raises:
        UserError: there is no such prompt or criterion, or a slot is missing or unknown.
    """

    asker: Asker
    criterion: str = "overall"
    prompt: str = "score"
    lowest: int = 1
    highest: int = 9
    max_tokens: int = 1
    temperature: float = 0.0
    draw: int = 0
    top_p: float = 1.0
    _measure: Criterion = field(init=False, repr=False)
    _template: Template = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._measure, self._template = criterion(self.criterion), template(self.prompt, SCORE_SLOTS, OPTIONAL)
        if not self.lowest < self.highest:
            raise UserError(f"lowest: a rating below highest, {self.highest}, not {self.lowest}")

    def by(self, measure: Criterion) -> Self:
        """Return the same judge, by another criterion."""
        made = replace(self)
        made._measure = measure
        return made

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return a rating of each response; NaN where the answer cannot be read."""
        answers = self.asker.ask([self._question(one) for one in candidates])
        return [rating(answer, self.lowest, self.highest) for answer in answers]

    def _question(self, one: Candidate) -> Question:
        slots = {"prompt": as_text(one.prompt), "response": one.response, "criterion": self._measure.text}
        if "reference" in self._template.slots:
            slots["reference"] = _reference(one.reference_answer, f"prompt {slots['prompt'][:80]!r}", self._template)
        return self.question(self._template.fill(slots))


def _reference(answer: str | None, which: str, prompt: Template) -> str:
    if answer is None:
        raise UserError(f"{prompt.path} shows a reference answer, and the responses to {which} have none")
    return answer
