"""Which features of a reward explain the labels of pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lit_tr.errors import UserError
from lit_tr.evaluation.intervals import Interval, wilson
from lit_tr.evaluation.responses import Response, as_text

FOLDS, RIDGE = 5, 1.0
"""Parts of the prompts that are held out in turn, and the strength of the ridge of the regression."""


@dataclass(frozen=True)
class Explanation:
    """How one feature goes with the labels.

    Args:
        pairs: pairs whose responses both have it.
        agreement: share of them whose chosen response has more of it; a tie counts 1/2. Below one half the labels go
            against it.
        interval: its 95 % interval, Wilson's.
        weight: in the regression over all features: by how much a difference of 1 in it moves the log-odds that a
            response is chosen, the other features being equal.
        standard_error: of the weight.
    """

    pairs: int
    agreement: float
    interval: Interval
    weight: float
    standard_error: float


@dataclass(frozen=True)
class Explained:
    """How far features explain the labels of pairs.

    Args:
        features: each on its own, by name.
        pairs: pairs with any feature.
        accuracy: share of held-out pairs whose chosen response the regression prefers; None for fewer than 5 prompts.
        interval: its 95 % interval, Wilson's.
    """

    features: dict[str, Explanation]
    pairs: int
    accuracy: float | None = None
    interval: Interval | None = None


def explain_labels(chosen: Sequence[Response], rejected: Sequence[Response]) -> Explained:
    """Return how far the features of scored responses explain the labels of pairs.

    With ratings by principles as features it is the second half of Inverse Constitutional AI (Findeis et al. 2024,
    arXiv 2406.06560): how well each principle reconstructs the labels. The regression is scikit-learn's logistic one on
    differences of features, without intercept, and so Bradley and Terry's model; the ridge, its default, is on
    differences that are scaled to a mean square of 1, and the standard errors are from the curvature at the optimum.
    A fifth of the prompts is held out at a time. Where a response lacks a feature, its pair counts as a tie in the
    regression, and is left out of the agreement.

    Args:
        chosen: the preferred responses, with features.
        rejected: the other ones, in the same order.

    Raises:
        UserError: no response has a feature, or scikit-learn is missing.
    """
    pairs = zip(chosen, rejected, strict=True)
    rows = [(row, as_text(a.prompt)) for a, b in pairs if (row := _difference(a, b))]
    if not rows:
        raise UserError("labels are explained by features of a reward, and this one tells none of its scores")
    names = [*dict.fromkeys(name for row, _ in rows for name in row)]
    differences = np.array([[row.get(name, np.nan) for name in names] for row, _ in rows])
    known = np.nan_to_num(differences)
    scale = np.sqrt((known**2).mean(0))
    scale[scale == 0] = 1.0
    scaled = known / scale
    weights = _weights(scaled)
    figures = zip(differences.T, weights / scale, _errors(scaled, weights) / scale, strict=True)
    features = {name: _explanation(*row) for name, row in zip(names, figures, strict=True)}
    return Explained(features, len(rows), *_held_out(scaled, [prompt for _, prompt in rows]))


def _difference(chosen: Response, rejected: Response) -> dict[str, float]:
    """Return by how much more of each feature the chosen response has."""
    theirs = rejected.features or {}
    return {name: value - theirs[name] for name, value in (chosen.features or {}).items() if name in theirs}


def _explanation(differences: np.ndarray, weight: float, error: float) -> Explanation:
    known = differences[~np.isnan(differences)]
    right = float((np.sign(known) + 1).sum()) / 2
    count = len(known)
    return Explanation(count, right / count, wilson(right, count), float(weight), float(error))


def _weights(differences: np.ndarray) -> np.ndarray:
    """Return the weights of a logistic regression without intercept: each pair is shown in both orders."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise UserError("labels are explained by scikit-learn: pip install 'lit-tr[evaluation]'") from error
    both, is_chosen = np.concatenate([differences, -differences]), np.repeat([1, 0], len(differences))
    return LogisticRegression(C=0.5 / RIDGE, fit_intercept=False, max_iter=1000).fit(both, is_chosen).coef_[0]


def _errors(differences: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return standard errors: the root of the diagonal of the inverse Hessian."""
    probability = 1 / (1 + np.exp(-differences @ weights))
    curvature = differences.T @ (differences * (probability * (1 - probability))[:, None])
    return np.sqrt(np.diag(np.linalg.inv(curvature + RIDGE * np.eye(len(weights)))))


def _held_out(differences: np.ndarray, prompts: Sequence[str]) -> tuple[float, Interval] | tuple[()]:
    """Return the accuracy on prompts that the regression has not seen, with its interval."""
    from sklearn.model_selection import GroupKFold

    if len({*prompts}) < FOLDS:
        return ()
    right = 0.0
    for train, test in GroupKFold(FOLDS).split(differences, groups=prompts):
        right += float((np.sign(differences[test] @ _weights(differences[train])) + 1).sum()) / 2
    return right / len(prompts), wilson(right, len(prompts))
