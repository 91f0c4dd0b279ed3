"""The best of N samples: the frontier that a policy reaches without training."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lit_tr.errors import UserError
from lit_tr.evaluation.seeds import Mean, mean_of


@dataclass(frozen=True)
class BestOfN:
    """A point of the frontier.

    Args:
        n: how many samples the best is taken of.
        kl: bound on the KL divergence from the sampled policy, in nats per response.
        score: mean over prompts of the expected highest score, with its interval.
    """

    n: int
    kl: float
    score: Mean


def kl_bound(n: int) -> float:
    """Return `log n - (n - 1) / n`, in nats per response.

    The KL divergence of the best of n samples from the policy that they are drawn from is at most this (Beirami et al.,
    arXiv 2401.01879, theorem 1), and near it where no two responses have one score.
    """
    return math.log(n) - (n - 1) / n


def weights(samples: int, n: int) -> list[float]:
    """Return the probability that each of some samples, from the lowest to the highest, is the best of n drawn of them.

    The i-th from below is the best of `comb(i - 1, n - 1)` of all `comb(samples, n)` subsets (appendix I of Nakano et
    al., arXiv 2112.09332; Gao et al., arXiv 2210.10760).

    Examples:
        >>> weights(samples=3, n=2)
        [0.0, 0.3333333333333333, 0.6666666666666666]
    """
    return [math.comb(below, n - 1) / math.comb(samples, n) for below in range(samples)]


def expected_best(scores: Sequence[float], n: int) -> float:
    """Return the mean, over all subsets of n of the samples of a prompt, of the highest score of a subset.

    It estimates without bias the expected score of the best of n, with less variance than drawing subsets.

    Raises:
        UserError: there are fewer than n samples.

    Examples:
        >>> round(expected_best([1.0, 4.0, 2.0], n=2), 4)  # of 4, 4 and 2
        3.3333
    """
    if not 1 <= n <= len(scores):
        raise UserError(
            f"best of {n}: a prompt has {len(scores)} scored samples; take 1 to {len(scores)}, or sample more"
        )
    return math.fsum(w * score for w, score in zip(weights(len(scores), n), sorted(scores), strict=True))


def frontier(scores: Sequence[Sequence[float]], sizes: Iterable[int] | None = None) -> list[BestOfN]:
    """Return the frontier of a policy.

    Args:
        scores: of the samples of each prompt, at least two prompts.
        sizes: the N; None takes the powers of 2 up to the samples of the prompt that has fewest.
    """
    fewest = min(map(len, scores))
    sizes = [2**power for power in range(fewest.bit_length())] if sizes is None else sizes
    return [BestOfN(n, kl_bound(n), mean_of([expected_best(one, n) for one in scores])) for n in sizes]
