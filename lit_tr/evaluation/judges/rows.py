"""Rows that teach a policy to judge."""

import random
from collections.abc import Mapping
from dataclasses import dataclass, field

from lit_tr.data.example import Example, Message, Row, message
from lit_tr.data.formats import RatedFormat, detect
from lit_tr.data.formats.rated import Rated
from lit_tr.errors import BadRowError, UserError
from lit_tr.evaluation.answers import Answer
from lit_tr.evaluation.judges.llm import SCORE_SLOTS
from lit_tr.evaluation.judges.reading import rating
from lit_tr.evaluation.judges.templates import Template, template


@dataclass(frozen=True)
class EvaluationRows:
    r"""Format of evaluation fine-tuning (EFT; Self-Rewarding Language Models, arXiv 2401.10020, Sec. 2.1).

    Each response of a rated or ranked row makes an example to be learned, by SFT: the prompt is that of a judge, the
    chosen response its judgement. That is the reason for the rating, where the row has one (UltraFeedback's `critique`,
    a list `rationales`), and then the score in the form that judges are read by. The paper's judgements are sampled
    from a policy, and kept where they rank as people do; give rows with such `rationales` to train on theirs.

    Args:
        format: how the rows are read, one of several rated responses; None detects it.
        prompt: prompt of the judge, as for `JudgeReward`, with the slots {prompt} and {response} alone.
        scale: lowest and highest rating of the rows; None takes those of each row, as rankings need it.
        lowest: score of the lowest rating.
        highest: score of the highest one. Those between are rounded to whole scores.
        keep: the share of examples that is kept, by score, at random; scores that it does not name are kept. In the
            paper one score made up most rows, and they were balanced.
        seed: of that choice.

    Raises:
        UserError: an argument is not as it should be.

    Examples:
        >>> rows = EvaluationRows(scale=(1, 5))
        >>> row = {"instruction": "1 + 1?", "generations": ["2", "3"], "ratings": [5, 1], "rationales": ["Yes.", "No."]}
        >>> [example.chosen for example in rows(row)]
        ['Yes.\n\n[[5]]', 'No.\n\n[[0]]']
    """

    format: RatedFormat | None = None
    prompt: str = "additive"
    scale: tuple[float, float] | None = None
    lowest: int = 0
    highest: int = 5
    keep: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0
    _template: Template = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_template", template(self.prompt, SCORE_SLOTS, set()))
        low, high = self.scale or (0, 1)
        if not low < high or not self.lowest < self.highest:
            raise UserError(
                f"EvaluationRows: scale {self.scale}, and lowest {self.lowest} and highest {self.highest}, must rise"
            )

    def __call__(self, row: Row) -> list[Example]:
        """Return the examples of a row.

        Raises:
            BadRowError: the row has no rated responses, or a rating outside the scale.
        """
        format = self.format or detect(row)
        if not isinstance(format, RatedFormat):
            raise BadRowError("the row has no responses with ratings")
        prompt, rated = format.rated(row)
        return [
            Example(self._shown(prompt, one.text), judgement, None)
            for one in rated
            for score, judgement in [self._judgement(one, rated)]
            if random.Random(f"{self.seed} {prompt} {one.text}").random() < self.keep.get(score, 1)
        ]

    def _shown(self, prompt: str, response: str) -> str | list[Message]:
        """Return what a judge is shown: text, which becomes a chat where there is a template, or messages."""
        messages = self._template.fill({"prompt": prompt, "response": response})
        return f"{messages[0][1]}\n\n" if len(messages) == 1 else [message(*one) for one in messages]

    def _judgement(self, one: Rated, rated: list[Rated]) -> tuple[int, str]:
        ratings = [other.rating for other in rated]
        low, high = self.scale or (min(ratings), max(ratings))
        if low == high:
            raise BadRowError("no response is rated above another one")
        if not low <= one.rating <= high:
            raise BadRowError("a rating is outside the scale", f"{one.rating:g}, scale {low:g} to {high:g}")
        score = self.lowest + round((one.rating - low) / (high - low) * (self.highest - self.lowest))
        said = f"{(one.why or '').strip()}\n\n[[{score}]]".strip()
        if rating(Answer(said), self.lowest, self.highest) != score:
            raise BadRowError("the reason for a rating holds another score in double brackets")
        return score, said
