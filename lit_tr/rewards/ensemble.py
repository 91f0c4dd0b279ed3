"""Several scorers as one (Coste et al. 2023, arXiv 2310.02743)."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from lit_tr.errors import UserError
from lit_tr.rewards.base import Candidate, Features, Fitted, Scorer

How = Literal["mean", "worst", "mean_less_variance"]


@dataclass
class Ensemble(Fitted):
    """Scores by several members, each standardised to mean 0 and standard deviation 1.

    After `fit`, or with `fitted`, the means and deviations are those of a sample. Without, they are those of what one
    call of `score` is given, so scores of different calls do not compare: give what is to be compared in one.

    An ensemble mitigates the exploitation of its members and does not end it, for their errors are alike (Eisenstein et
    al. 2023, arXiv 2312.09244).

    Args:
        members: the scorers; several.
        how: `mean` of the members; `worst`, the least of them; or `mean_less_variance`, their mean less `weight` times
            their variance: what they disagree on counts less.
        weight: of the variance.
        fitted: a file that `save` wrote.

    Raises:
        UserError: there are fewer than two members, or no such way; or the file is of other members.
    """

    members: Sequence[Scorer]
    how: How = "mean"
    weight: float = 0.5
    fitted: str | None = None
    _statistics: np.ndarray | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.members) < 2:
            raise UserError("an ensemble needs at least two members")
        if self.how not in get_args(How):
            raise UserError(f"an ensemble scores by {', '.join(get_args(How))}, not by {self.how!r}")
        if self.fitted:
            self.load(self.fitted)

    @property
    def name(self) -> str:
        """The way, and the members' names."""
        return f"{self.how} of {', '.join(self._names)}"

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the ensemble's score of each response; NaN where a member gives none."""
        return self._joined(self._standardised(candidates)).tolist()

    def explain(self, candidates: Sequence[Candidate]) -> list[Features]:
        """Return the ensemble's score of each response as `score`, with the standardised scores of its members."""
        scores = self._standardised(candidates)
        names = [f"{name} {i}" if self._names.count(name) > 1 else name for i, name in enumerate(self._names, 1)]
        rows = zip(self._joined(scores).tolist(), scores.T.tolist(), strict=True)
        return [{"score": score, **dict(zip(names, row, strict=True))} for score, row in rows]

    def fit(self, candidates: Sequence[Candidate]) -> "Ensemble":
        """Standardise from now on by a sample, by which members are fitted, too, that can be.

        Those that were given a file of their own, `fitted`, keep its statistics.

        Raises:
            UserError: a member scores nothing of it.
        """
        for member in self._fittable:
            if not getattr(member, "fitted", None):
                member.fit(candidates)
        raw = self._raw(candidates)
        for name, row in zip(self._names, raw, strict=True):
            if np.isnan(row).all():
                raise UserError(f"{name}: it gives no score to any of the {len(row)} responses of the sample")
        self._statistics = np.array([statistics(row) for row in raw])
        return self

    def state(self) -> Any:
        """Return names, means and deviations of the members, and their own statistics."""
        if self._statistics is None:
            return None
        own = [member.state() for member in self._fittable]
        return {"members": self._names, "statistics": self._statistics.tolist(), "fitted": own}

    def restore(self, state: Any) -> None:
        """Take means and deviations, and the members' own statistics."""
        if state["members"] != self._names:
            raise UserError(f"it is of {', '.join(state['members'])}, not of {', '.join(self._names)}")
        for member, own in zip(self._fittable, state["fitted"], strict=True):
            member.restore(own)
        self._statistics = np.array(state["statistics"])

    @property
    def _names(self) -> list[str]:
        return [member.name for member in self.members]

    @property
    def _fittable(self) -> list[Any]:
        return [member for member in self.members if hasattr(member, "fit")]

    def _raw(self, candidates: Sequence[Candidate]) -> np.ndarray:
        return np.array([member.score(candidates) for member in self.members], dtype=float)

    def _standardised(self, candidates: Sequence[Candidate]) -> np.ndarray:
        """Return the members' scores, `(members, responses)`."""
        raw = self._raw(candidates)
        taken = [statistics(row) for row in raw] if self._statistics is None else self._statistics
        means, spreads = np.array(taken).T[..., None]
        return (raw - means) / spreads

    def _joined(self, scores: np.ndarray) -> np.ndarray:
        if self.how == "worst":
            return scores.min(0)
        less = self.weight * scores.var(0) if self.how == "mean_less_variance" else 0.0
        return scores.mean(0) - less


def statistics(scores: np.ndarray) -> tuple[float, float]:
    """Return mean and standard deviation (`ddof` 0) of some scores without those that are NaN; of equal ones 1.

    Examples:
        >>> statistics(np.array([1.0, 3.0, np.nan]))
        (2.0, 1.0)
    """
    known = scores[~np.isnan(scores)]
    return (float(known.mean()), float(known.std()) or 1.0) if len(known) else (0.0, 1.0)
