"""Length-controlled win rate: what the win rate would be if both responses were equally long.

After Dubois et al. 2024 (arXiv 2404.04475), a logistic regression of the preference on the length difference:
`logit P(A over B) = bias + slope * tanh(z)`, with `z` the difference of lengths in characters over its standard
deviation. The length-controlled win rate is `sigmoid(bias)`.

This is not AlpacaEval's published figure. That one has a term for the difficulty of each instruction and is fitted
together with two more baselines, from files that lie on a hub; without them the figure comes out too high for weak
models (for the published annotations of 56 models by 6.6 points in the mean). Two runs that are judged on the same
prompts share that error, so read their difference.
"""

from collections.abc import Sequence

import numpy as np

STEPS, LARGEST_STEP = 40, 4.0
EXACT, SETTLED = 1e-13, 1e-8
"""Slopes of the log-likelihood, the mean over rows, at which the fit ends, and below which it counts."""
RIDGE = 1e-12
"""Keeps Newton's system solvable where nothing is left to fit; it does not move the maximum."""


class LengthControl:
    """The fit for pairs of several prompts; each prompt counts once, whatever its number of samples.

    Args:
        ids: prompt of each pair.
        preferences: of A over B in [0, 1], soft targets.
        lengths_a: characters of A's responses.
        lengths_b: characters of B's.
    """

    def __init__(
        self, ids: Sequence[str], preferences: Sequence[float], lengths_a: Sequence[int], lengths_b: Sequence[int]
    ) -> None:
        self.names, self.prompt = np.unique(np.asarray(ids), return_inverse=True)
        self.preferences = np.asarray(preferences, dtype=float)
        difference = np.subtract(lengths_b, lengths_a).astype(float)
        spread = difference.std(ddof=1) if len(difference) > 1 else 0.0
        self.features = np.tanh(difference / spread) if spread else np.zeros(len(difference))
        self.share = 1 / np.bincount(self.prompt)[self.prompt]

    def of(self, drawn: np.ndarray) -> np.ndarray:
        """Return the length-controlled win rate of A in [0, 1] for prompts drawn by number, (..., prompts) to (...).

        It is NaN where lengths alone decide who wins.
        """
        flat = drawn.reshape(-1, drawn.shape[-1])
        counts = np.stack([np.bincount(row, minlength=len(self.names)) for row in flat])
        bias, _ = fit(self.features, self.preferences, counts[:, self.prompt] * self.share)
        return (0.5 + 0.5 * np.tanh(bias / 2)).reshape(drawn.shape[:-1])


def fit(features: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fit `logit P = bias + slope * feature` by maximum likelihood, with soft targets; many weightings at once.

    Newton's method with a bounded step. Where the likelihood has no maximum (A always wins) the bias grows until its
    probability is 1 within rounding.

    Args:
        features: of each row, shape (rows,).
        targets: probabilities in [0, 1], shape (rows,).
        weights: of each row in each fit, shape (fits, rows).

    Returns:
        Bias and slope of each fit, shape (fits,) each; NaN where the fit did not settle.
    """
    design = np.stack([np.ones_like(features), features], axis=-1)  # (rows, 2)
    weights = weights / weights.sum(-1, keepdims=True)
    found = np.zeros((len(weights), 2))
    for _ in range(STEPS):
        fitted = 0.5 + 0.5 * np.tanh(found @ design.T / 2)
        slope = (weights * (targets - fitted)) @ design
        if np.abs(slope).max() < EXACT:
            break
        curvature = np.einsum("fr,ri,rj->fij", weights * fitted * (1 - fitted), design, design)
        step = np.linalg.solve(curvature + RIDGE * np.eye(2), slope[..., None])[..., 0]
        found = found + step.clip(-LARGEST_STEP, LARGEST_STEP)
    found[np.abs(slope).max(-1) > SETTLED] = np.nan
    return found[:, 0], found[:, 1]
