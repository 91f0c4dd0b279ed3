"""Losses that heed the lengths of a pair's responses."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_tr.errors import UserError
from lit_tr.losses.base import Scores, _require
from lit_tr.losses.dpo import DPO


@dataclass(frozen=True)
class LDDPO(DPO):
    """DPO that is less sensitive to lengths (LD-DPO), Liu et al. 2024 (arXiv 2409.06411).

    Of the longer response of a pair, the log-probs of the tokens beyond the length of the shorter one are multiplied by
    `ld_alpha`, under policy and reference alike, as in TRL. 1 is DPO; with 0 both responses count to the same length.

    The shorter length belongs to a pair, so logged rewards, which are those of single responses, are DPO's, of all
    tokens; TRL logs those of the weighed log-probs.

    Args:
        beta: as for `DPO`.
        label_smoothing: as for `DPO`.
        margin_scale: as for `DPO`.
        offset: as for `DPO`.
        divergence: as for `DPO`.
        average: as for `DPO`, by all tokens.
        ld_alpha: weight of the tokens beyond the shorter length, in [0, 1]; the name is TRL's.

    Raises:
        UserError: an argument is not in its range.

    Examples:
        >>> tokens = torch.tensor([-1.0, -2.0]), torch.tensor([-3.0])
        >>> chosen, rejected = (
        ...     Scores(one.sum()[None], torch.tensor([len(one)]), torch.zeros(1), {}, one, torch.zeros(len(one)))
        ...     for one in tokens
        ... )
        >>> LDDPO(beta=1.0, ld_alpha=0.5)(chosen, rejected)  # -log(sigmoid((-1 - 0.5 * 2) - (-3)))
        tensor([0.3133])
    """

    token_level: ClassVar[bool] = True

    ld_alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(0 <= self.ld_alpha <= 1, f"LDDPO: ld_alpha must be in [0, 1], not {self.ld_alpha}")

    def __call__(self, chosen: Scores, rejected: Scores, statistics: Tensor | None = None) -> Tensor:
        """Return the loss of each pair, `(pairs,)`."""
        shorter = torch.minimum(chosen.tokens, rejected.tokens)
        chosen, rejected = (self._desensitized(scores, shorter) for scores in (chosen, rejected))
        return super().__call__(chosen, rejected, statistics)

    def _desensitized(self, scores: Scores, shorter: Tensor) -> Scores:
        policy, reference = (
            (1 - self.ld_alpha) * _beyond(values, scores.tokens, shorter)
            for values in (scores.policy_tokens, scores.reference_tokens)
        )
        assert scores.reference is not None  # it comes with those of tokens
        return replace(scores, policy=scores.policy - policy, reference=scores.reference - reference)


def _beyond(values: Tensor | None, tokens: Tensor, shorter: Tensor) -> Tensor:
    """Return the sum of the values of each response beyond its first tokens, `(responses,)`.

    Args:
        values: values of the scored tokens, response after response, `(scored tokens,)`.
        tokens: how many each response has, `(responses,)`.
        shorter: how many are left out, at most so many, `(responses,)`.
    """
    if values is None:
        raise UserError("the loss reads the log-probs of tokens, and the scores have none")
    tokens, shorter = tokens.long(), shorter.long()
    ends = tokens.cumsum(0)
    before = F.pad(values.double().cumsum(0), (1, 0))
    return (before[ends] - before[ends - tokens + shorter]).to(values.dtype)
