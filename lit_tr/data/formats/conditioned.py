"""Formats that tell the policy what a response is to be good at: a row with scores -> Examples with system prompts.

At test time the same system prompt asks for another score or other weights; `said` writes it.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from random import Random

from lit_tr.data.example import Example, Format, Row, message
from lit_tr.data.formats.detect import detect
from lit_tr.data.formats.fields import number, value_of
from lit_tr.errors import BadRowError, UserError


@dataclass(frozen=True)
class RewardGoals:
    """Each pair twice: under the chosen response's score as a goal, and the other way round under the rejected one's.

    Reward-augmented pairs (Zhang et al. 2024, arXiv 2410.08067): the policy learns which score a response has, and does
    not unlearn rejected responses that are nearly as good. A pair of equal scores comes once, in the order of its
    label. The margin is the distance of the scores. Ask for the highest score at test time.

    Args:
        format: makes a pair of the row; None detects it from the row's columns.
        scores: columns with the score of the chosen and of the rejected response.
        text: what is added to the system prompt, with the slot {score}.
        decimals: of scores in the text.

    Raises:
        UserError: the text has no slot.

    Examples:
        >>> row = {"prompt": "1 + 1?", "chosen": "2", "rejected": "3", "score_chosen": 9, "score_rejected": 2.5}
        >>> [f"{one.system} {one.chosen} over {one.rejected}" for one in RewardGoals()(row)]
        ['Write a response that is rated 9. 2 over 3', 'Write a response that is rated 2.5. 3 over 2']
    """

    format: Format | None = None
    scores: tuple[str, str] = ("score_chosen", "score_rejected")
    text: str = "Write a response that is rated {score}."
    decimals: int = 1

    def __post_init__(self) -> None:
        if "{score}" not in self.text:
            raise UserError(f"RewardGoals: text must have the slot {{score}}, and is {self.text!r}")

    def __call__(self, row: Row) -> list[Example]:
        """Return the examples of a row: two for each pair.

        Raises:
            BadRowError: it is no pair, or has no scores.
        """
        one, other = (_score(row, column) for column in self.scores)
        goals = [self.said(score) for score in (one, other)]
        found = []
        for pair in _pairs(self.format, row):
            sides = [pair] if goals[0] == goals[1] else [pair, _swapped(pair)]
            found += [_told(side, goal, abs(one - other)) for side, goal in zip(sides, goals, strict=False)]
        return found

    def said(self, score: float) -> str:
        """Return what asks for a score."""
        return self.text.replace("{score}", f"{round(score, self.decimals):g}")


@dataclass(frozen=True)
class UserWeights:
    """Pairs ordered by several scores under weights that are drawn for each, and stand in the system prompt.

    One policy then follows a user's weights at test time. As in Directional Preference Alignment (Wang et al. 2024,
    arXiv 2402.18571) the weights are a direction, of length 1, and are written in hundredths; there the policy is
    fine-tuned on the best of several responses, here pairs are put in order. The margin is the difference of the
    weighted scores. Scores are taken as they stand, so they should be on one scale. Draws under which both responses
    are equally good are left out.

    Args:
        objectives: names, each with the range that its weight is drawn from before the weights are scaled to length 1:
            `{helpfulness: [1, 1], verbosity: [-1, 1]}` has verbosity from -0.71 to 0.71. The scores stand in columns
            NAME_chosen and NAME_rejected.
        format: makes a pair of the row; None detects it from the row's columns.
        draws: how often weights are drawn for each pair. Those of a row are the same whenever it comes.
        text: what is added to the system prompt, with the slot {weights}.
        seed: of the draws.

    Raises:
        UserError: a range is none, all are 0, draws is below 1, or the text has no slot.

    Examples:
        >>> row = {"prompt": "1 + 1?", "chosen": "It is 2.", "rejected": "2", "brief_chosen": 1, "brief_rejected": 5}
        >>> [found] = UserWeights({"brief": (1, 1)})(row)
        >>> found.chosen, found.margin, found.system
        ('2', 4.0, 'Weigh what makes a response good: brief 100.')
    """

    objectives: Mapping[str, tuple[float, float]]
    format: Format | None = None
    draws: int = 1
    text: str = "Weigh what makes a response good: {weights}."
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = list(self.objectives.values())
        if not all(math.isfinite(low) and math.isfinite(high) and low <= high for low, high in ranges):
            raise UserError(f"UserWeights: objectives {dict(self.objectives)} need ranges, the lower number first")
        if not any(high or low for low, high in ranges) or self.draws < 1:
            raise UserError("UserWeights: give an objective whose weight is not always 0, and draws of at least 1")
        if "{weights}" not in self.text:
            raise UserError(f"UserWeights: text must have the slot {{weights}}, and is {self.text!r}")

    def __call__(self, row: Row) -> list[Example]:
        """Return the examples of a row: one for each pair and draw.

        Raises:
            BadRowError: it is no pair, lacks a score, or its responses are equally good under all draws.
        """
        above = {name: _score(row, f"{name}_chosen") - _score(row, f"{name}_rejected") for name in self.objectives}
        found = [one for pair in _pairs(self.format, row) for one in self._weighted(pair, above)]
        if not found:
            raise BadRowError("the weighted scores of both responses are equal")
        return found

    def said(self, weights: Mapping[str, float]) -> str:
        """Return what asks for some weights, of length 1."""
        written = ", ".join(f"{name} {round(100 * weight)}" for name, weight in weights.items())
        return self.text.replace("{weights}", written)

    def _weighted(self, pair: Example, above: Mapping[str, float]) -> Iterator[Example]:
        draw = Random(f"{self.seed} {pair.prompt} {pair.chosen} {pair.rejected}")
        for _ in range(self.draws):
            weights = self._drawn(draw)
            margin = math.fsum(weights[name] * value for name, value in above.items())
            if margin:
                yield _told(pair if margin > 0 else _swapped(pair), self.said(weights), abs(margin))

    def _drawn(self, draw: Random) -> dict[str, float]:
        weights, length = dict[str, float](), 0.0
        while not length:
            weights = {name: draw.uniform(*ends) for name, ends in self.objectives.items()}
            length = math.hypot(*weights.values())
        return {name: weight / length for name, weight in weights.items()}


def _score(row: Row, column: str) -> float:
    if (found := number(value_of(row, column))) is None:
        raise BadRowError(f"{column!r} is not a number", repr(row[column])[:80])
    return found


def _pairs(format: Format | None, row: Row) -> list[Example]:
    found = (format or detect(row))(row)
    pairs = found if isinstance(found, list) else [found]
    if any(one.chosen is None or one.rejected is None for one in pairs):
        raise BadRowError("the row is no pair")
    return pairs


def _swapped(pair: Example) -> Example:
    labels = {name: (other, one) for name, (one, other) in pair.labels.items()}
    return replace(pair, chosen=pair.rejected, rejected=pair.chosen, labels=labels)


def _told(pair: Example, text: str, margin: float) -> Example:
    """Return a pair that is ordered by scores, with a text at the end of its system prompt."""
    pair = replace(pair, margin=margin, confidence=1.0)
    if isinstance(pair.prompt, str) or pair.system:
        return replace(pair, system="\n\n".join(filter(None, (pair.system, text))))
    first, *further = pair.prompt
    if first["role"] == "system":
        return replace(pair, prompt=[message("system", f"{first['content']}\n\n{text}"), *further])
    return replace(pair, prompt=[message("system", text), *pair.prompt])
