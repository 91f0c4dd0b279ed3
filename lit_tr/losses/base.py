"""The interface of preference losses.

A loss is a frozen dataclass. It takes the scores of the chosen and of the rejected responses and returns one value per
example. It knows nothing of models, batches or ranks.

Log-probs are in nats, summed over the scored tokens of a response (its end-of-sequence token is one of them).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from lit_tr.errors import UserError


@dataclass(frozen=True)
class Scores:
    """Scores and labels of some responses.

    Args:
        policy: log-probs under the policy, `(responses,)`, with a gradient in training.
        tokens: number of scored tokens of each response, `(responses,)`.
        reference: log-probs under the reference, `(responses,)`; None if the loss needs none.
        labels: labels from the data by name, `(responses,)` each; nan where there is none.
        policy_tokens: log-prob of each scored token under the policy, response after response, `(scored tokens,)`; None
            unless the loss is `token_level`.
        reference_tokens: the same under the reference; None if the loss needs none.
        kl: sequential KL divergence, `KL(reference || policy)` of the next token, over the full vocabulary, summed over
            the scored tokens of each response, `(responses,)`, with a gradient in training; None unless the loss
            `needs_kl`.

    Examples:
        >>> scores = Scores(torch.tensor([-9.0, -12.0]), torch.tensor([5, 7]), reference=torch.tensor([-10.0, -11.0]))
        >>> scores.log_ratios, scores.confidence
        (tensor([ 1., -1.]), tensor([1., 1.]))
    """

    policy: Tensor
    tokens: Tensor
    reference: Tensor | None = None
    labels: Mapping[str, Tensor] = field(default_factory=dict)
    policy_tokens: Tensor | None = None
    reference_tokens: Tensor | None = None
    kl: Tensor | None = None

    @property
    def log_ratios(self) -> Tensor:
        """`log(policy / reference)` of each response, `(responses,)`.

        Raises:
            UserError: there is no reference.
        """
        if self.reference is None:
            raise UserError("the loss reads log_ratios, and there is no reference: leave its needs_reference True")
        return self.policy - self.reference

    @property
    def confidence(self) -> Tensor:
        """Probability that the label of each response (chosen, rejected) is right, `(responses,)`; by default 1."""
        return self.label("confidence", 1.0)

    @property
    def margin(self) -> Tensor:
        """By how much the chosen response of the pair is rated above the rejected one, `(responses,)`; by default 0."""
        return self.label("margin", 0.0)

    def label(self, name: str, default: float) -> Tensor:
        """Return a label of each response, `(responses,)`; the default where the data has none."""
        if name not in self.labels:
            return torch.full_like(self.policy, default, requires_grad=False)
        return self.labels[name].nan_to_num(default)


class Loss(ABC):
    """One value per example, from the scores of its responses.

    Attributes:
        beta: scale of the implicit reward.
        paired: the loss compares the two responses of one prompt, so it cannot take unpaired rows.
        needs_reference: False if it uses no reference log-probs: then no reference is built.
        needs_kl: the loss uses `KL(reference || policy)` at each token, so it needs a reference that holds a model.
        token_level: the loss uses the log-probs of each token.
        mismatched: the loss needs KL rows: prompts with responses borrowed from other rows.
    """

    beta: float
    paired: ClassVar[bool] = True
    needs_reference: ClassVar[bool] = True
    needs_kl: ClassVar[bool] = False
    token_level: ClassVar[bool] = False
    mismatched: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, chosen: Scores, rejected: Scores, statistics: Tensor | None = None) -> Tensor:
        """Return the loss of each example, `(pairs,)`, or of each response that it trains on.

        A batch without examples gives an empty tensor.

        Args:
            chosen: scores of the preferred (desirable) responses.
            rejected: scores of the other (undesirable) responses.
            statistics: the result of `statistics` for this batch; None for a loss without them.
        """

    def rewards(self, scores: Scores) -> Tensor:
        """Return the implicit reward of each response, `(responses,)`, for the logged rewards and margins."""
        return self.beta * scores.log_ratios

    def sums(self, chosen: Scores, rejected: Scores, kl_rows: Scores) -> Tensor | None:
        """Return sums over the responses of one batch, `(n,)`, detached, to be summed over the ranks; None for no sums.

        Args:
            chosen: scores of the preferred responses.
            rejected: scores of the other responses.
            kl_rows: scores of the prompts with borrowed responses; empty unless the loss is `mismatched`.
        """
        return None

    def statistics(self, sums: Tensor, previous: Tensor | None) -> Tensor:
        """Return the loss's statistics of a batch, such as KTO's baseline or a running mean.

        Args:
            sums: the sums over all ranks.
            previous: the result at the last training step, which a checkpoint saves; None before the first one.
        """
        return sums


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise UserError(message)
