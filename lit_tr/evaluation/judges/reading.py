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
        found = shares(answer.first, ("A", "B"))
        return found[0] if found else None
    return CHOICES.get(verdict(answer.text) or "")


def rating(answer: Answer | None, lowest: int, highest: int) -> float:
    """Return a rating: of one token the mean over the digits' probabilities; NaN where the answer does not say.

    Probabilities are read as by `preference`: the digits need at least `LEAST_MASS` together.
    """
    if answer is None:
        return math.nan
    digits = [str(value) for value in range(lowest, highest + 1)]
    if answer.first is not None and highest < 10:
        found = shares(answer.first, digits)
        return sum(int(digit) * share for digit, share in zip(digits, found, strict=True)) if found else math.nan
    try:
        value = float(verdict(answer.text) or "")
    except ValueError:
        return math.nan
    return value if lowest <= value <= highest else math.nan


def shares(first: Mapping[str, float], labels: Sequence[str]) -> list[float] | None:
    """Return the probabilities of labels as first token, with or without white space, divided by their sum.

    None where the sum is below `LEAST_MASS`.
    """
    found = [sum(math.exp(value) for token, value in first.items() if token.strip() == label) for label in labels]
    total = sum(found)
    return [mass / total for mass in found] if total >= LEAST_MASS else None


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
