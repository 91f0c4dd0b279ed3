"""Reads answers of judges: probabilities of one token where there are any, text by strict rules otherwise."""

import math
import re
from collections.abc import Mapping, Sequence

from lit_tr.evaluation.answers import Answer

VERDICT = re.compile(r"\[\[([^\[\]]*)\]\]")
CHOICES = {"A": 1.0, "B": 0.0, "tie": 0.5}
"""Verdicts on a pair, and the preference for what is shown first."""
LEAST_MASS = 0.01
"""Least probability of all labels together that is an answer: below it, the model would say something else."""


def preference(answer: Answer | None) -> float | None:
    """Return the probability that what is shown first is better; None where the answer does not say.

    Of one token it is `p(A) / (p(A) + p(B))`; a label that is not among the likeliest tokens has probability 0.
    """
    if answer is None:
        return None
    if answer.first is not None:
        a, b = masses(answer.first, ("A", "B"))
        return a / (a + b) if a + b >= LEAST_MASS else None
    return CHOICES.get(verdict(answer.text) or "")


def rating(answer: Answer | None, lowest: int, highest: int) -> float:
    """Return a rating: of one token the mean over the digits' probabilities; NaN where the answer does not say."""
    if answer is None:
        return math.nan
    digits = [str(value) for value in range(lowest, highest + 1)]
    if answer.first is not None and highest < 10:
        found = masses(answer.first, digits)
        total = sum(found)
        return sum(int(digit) * mass for digit, mass in zip(digits, found, strict=True)) / total if total else math.nan
    try:
        value = float(verdict(answer.text) or "")
    except ValueError:
        return math.nan
    return value if lowest <= value <= highest else math.nan


def masses(first: Mapping[str, float], labels: Sequence[str]) -> list[float]:
    """Return the probability of each label as first token, with or without white space round it."""
    return [sum(math.exp(value) for token, value in first.items() if token.strip() == label) for label in labels]


def verdict(text: str) -> str | None:
    """Return the label that an answer gives; None where it gives none, or several.

    It is what stands in double brackets, the same in each; or the whole answer, but for white space and a full stop.

    Examples:
        >>> verdict("B is too short, so [[A]]")
        'A'
        >>> verdict(" B.")
        'B'
        >>> verdict("[[A]] or [[B]]"), verdict("I like A")
        (None, 'I like A')
    """
    found = {label.strip() for label in VERDICT.findall(text)} or {text.strip().removesuffix(".")}
    return found.pop() if len(found) == 1 else None
