"""Several scorers as one (Coste et al. 2023, arXiv 2310.02743)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from lit_tr.data.example import Text
from lit_tr.errors import UserError
from lit_tr.evaluation.judges.base import Scorer

How = Literal["mean", "worst", "mean_less_variance"]


@dataclass(frozen=True)
class Ensemble:
    """Scores by several members.

    Each member's scores are standardised on what one call of `score` is given (mean 0, standard deviation 1), so
    scores of different calls do not compare: give what is to be compared in one.

    Args:
        members: the scorers; several.
        how: `mean` of the members; `worst`, the least of them; or `mean_less_variance`, their mean less `weight` times
            their variance: what they disagree on counts less.
        weight: of the variance.

    Raises:
        UserError: there are fewer than two members, or no such way.
    """

    members: Sequence[Scorer]
    how: How = "mean"
    weight: float = 0.5

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise UserError("an ensemble needs at least two members")
        if self.how not in get_args(How):
            raise UserError(f"an ensemble scores by {', '.join(get_args(How))}, not by {self.how!r}")

    @property
    def name(self) -> str:
        """The way, and the members' names."""
        return f"{self.how} of {', '.join(member.name for member in self.members)}"

    def score(self, prompts: Sequence[Text], responses: Sequence[str]) -> list[float]:
        """Return the ensemble's score of each response; NaN where a member gives none."""
        scores = np.array([standardised(member.score(prompts, responses)) for member in self.members])
        if self.how == "worst":
            return scores.min(0).tolist()
        less = self.weight * scores.var(0) if self.how == "mean_less_variance" else 0.0
        return (scores.mean(0) - less).tolist()


def standardised(scores: Sequence[float]) -> np.ndarray:
    """Return scores with mean 0 and standard deviation 1 (`ddof` 0); zeros where all are equal, NaN where they are.

    Examples:
        >>> standardised([1.0, 3.0]).tolist()
        [-1.0, 1.0]
    """
    values = np.asarray(scores, dtype=float)
    if np.isnan(values).all():
        return values
    spread = np.nanstd(values)
    return (values - np.nanmean(values)) / (spread or 1.0)
