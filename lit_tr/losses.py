"""Preference losses: DPO, IPO, KTO, SFT.

A loss is a frozen dataclass. It takes the log-probs of the chosen and of the rejected responses under the policy and
under the reference, and returns one value for each example. It knows nothing of models, batches or ranks.

Log-probs are in nats, summed over the tokens of a response (its end-of-sequence token is one of them).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_tr.errors import UserError


@dataclass(frozen=True)
class Scores:
    """What two policies think of the same responses.

    Args:
        policy: log-probs under the policy, `(responses,)`, with a gradient in training.
        reference: log-probs under the reference, `(responses,)`.
        tokens: how many tokens each response has, `(responses,)`.
    """

    policy: Tensor
    reference: Tensor
    tokens: Tensor

    @property
    def log_ratios(self) -> Tensor:
        """`log(policy / reference)` of each response, `(responses,)`."""
        return self.policy - self.reference


@dataclass(frozen=True)
class Labels:
    """What the data says of its labels.

    Args:
        certainty: probability that the label of each example is right, `(examples,)`: that the chosen response is the
            better one, or that an unpaired one is as desirable as its label says. Unpaired ones stand desirable first.
        margin: by how much the chosen response is rated above the rejected one, `(examples,)`, in the data's units.
    """

    certainty: Tensor | float = 1.0
    margin: Tensor | float = 0.0

    def of_responses(self, chosen: int, rejected: int) -> tuple[Tensor | float, Tensor | float]:
        """Return the certainties of the chosen and of the rejected responses: in pairs, the same ones."""
        if isinstance(self.certainty, float) or len(self.certainty) != chosen + rejected:
            return self.certainty, self.certainty
        one, other = self.certainty.split([chosen, rejected])
        return one, other


CERTAIN = Labels()


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise UserError(message)


class Loss(ABC):
    """One value for each example, from the scores of its responses.

    Attributes:
        beta: scale of the implicit reward `beta * log_ratio`.
        paired: the loss compares the two responses of one prompt, so it cannot take unpaired rows.
        mismatched: the loss needs a KL baseline from prompts with borrowed responses.
    """

    beta: float
    paired: ClassVar[bool] = True
    mismatched: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, chosen: Scores, rejected: Scores, kl: Tensor, labels: Labels = CERTAIN) -> Tensor:
        """Return the loss of each example, `(pairs,)`, or `(chosen + rejected,)` where examples are not paired.

        Args:
            chosen: scores of the preferred (desirable) responses.
            rejected: scores of the other (undesirable) responses.
            kl: the KL baseline in nats, a scalar, detached, equal on all ranks; only KTO reads it.
            labels: how certain the labels are, and by what margin; by default certain, without one.
        """


@dataclass(frozen=True)
class DPO(Loss):
    """Direct Preference Optimization, Rafailov et al. 2023 (arXiv 2305.18290), Eq. 7.

    With `x = beta * (log_ratio(chosen) - log_ratio(rejected)) - margin_scale * margin` the loss of a pair is
    `-(1 - q) * log(sigmoid(x)) - q * log(sigmoid(-x))`, where `q` is the probability that its label is wrong. That is
    conservative DPO (https://ericmitchell.ai/cdpo.pdf, Eq. 3) with a `q` for each pair: a label of certainty `c` that
    is flipped with the probability `s` of label smoothing is wrong with `q = c * s + (1 - c) * (1 - s)`.

    The margin is the offset of ODPO (Amini et al. 2024, arXiv 2402.10571) with f the identity, and of the reward model
    of Llama 2 (Touvron et al. 2023, arXiv 2307.09288, Eq. 2).

    Args:
        beta: strength of the tie to the reference, above 0. The TR-DPO paper (arXiv 2404.09656) uses 0.05.
        label_smoothing: probability that a label is wrong, in [0, 0.5).
        margin_scale: nats of implicit reward for each unit of the data's margin, not negative (ODPO's alpha).
    """

    beta: float = 0.05
    label_smoothing: float = 0.0
    margin_scale: float = 0.0

    def __post_init__(self) -> None:
        _require(self.beta > 0, f"DPO: beta must be above 0, not {self.beta}")
        _require(
            0 <= self.label_smoothing < 0.5, f"DPO: label_smoothing must be in [0, 0.5), not {self.label_smoothing}"
        )
        _require(self.margin_scale >= 0, f"DPO: margin_scale must not be negative, not {self.margin_scale}")

    def __call__(self, chosen: Scores, rejected: Scores, kl: Tensor, labels: Labels = CERTAIN) -> Tensor:
        """Return the loss of each pair, `(pairs,)`."""
        logits = self.beta * (chosen.log_ratios - rejected.log_ratios) - self.margin_scale * labels.margin
        smoothing, certainty = self.label_smoothing, labels.certainty
        right = certainty * (1 - smoothing) + (1 - certainty) * smoothing
        wrong = certainty * smoothing + (1 - certainty) * (1 - smoothing)
        return -right * F.logsigmoid(logits) - wrong * F.logsigmoid(-logits)


@dataclass(frozen=True)
class IPO(Loss):
    """Identity Preference Optimization, Azar et al. 2023 (arXiv 2310.12036), Eq. 17.

    With `h = log_ratio(chosen) - log_ratio(rejected)` the loss of a pair is its expectation over a label of certainty
    `c`: `c * (h - 1 / (2 * beta)) ** 2 + (1 - c) * (-h - 1 / (2 * beta)) ** 2`.

    Args:
        beta: the paper's tau, above 0; the log-ratio margin is drawn to `1 / (2 * beta)`.
        average: `sum` takes the log-ratios summed over tokens, as Eq. 17 writes them. `mean` divides each by the number
            of its tokens; TRL does so, and reports that the authors did in their experiments.
    """

    beta: float = 0.05
    average: Literal["sum", "mean"] = "sum"

    def __post_init__(self) -> None:
        _require(self.beta > 0, f"IPO: beta must be above 0, not {self.beta}")

    def __call__(self, chosen: Scores, rejected: Scores, kl: Tensor, labels: Labels = CERTAIN) -> Tensor:
        """Return the loss of each pair, `(pairs,)`."""
        margins = self._scale(chosen) - self._scale(rejected)
        target, certainty = 1 / (2 * self.beta), labels.certainty
        return certainty * (margins - target) ** 2 + (1 - certainty) * (-margins - target) ** 2

    def _scale(self, scores: Scores) -> Tensor:
        return scores.log_ratios if self.average == "sum" else scores.log_ratios / scores.tokens


@dataclass(frozen=True)
class KTO(Loss):
    """Kahneman-Tversky Optimization, Ethayarajh et al. 2024 (arXiv 2402.01306), Eq. 8.

    Takes pairs (each gives a desirable and an undesirable example) and unpaired labelled rows. Its baseline, the KL of
    the policy from the reference, is estimated from prompts with responses borrowed from other rows of the batch; where
    no rank's batch has a row to borrow from, it is 0.

    Where a label is not certain the loss of a response is its expectation: with the certainty the value of its label,
    else that of the other one.

    Args:
        beta: strength of the tie to the reference, above 0.
        desirable_weight: weight of desirable examples (the paper's lambda_D), not negative.
        undesirable_weight: weight of undesirable examples (the paper's lambda_U), not negative.
    """

    paired: ClassVar[bool] = False
    mismatched: ClassVar[bool] = True

    beta: float = 0.05
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def __post_init__(self) -> None:
        _require(self.beta > 0, f"KTO: beta must be above 0, not {self.beta}")
        _require(min(self.desirable_weight, self.undesirable_weight) >= 0, "KTO: weights must not be negative")

    def __call__(self, chosen: Scores, rejected: Scores, kl: Tensor, labels: Labels = CERTAIN) -> Tensor:
        """Return the loss of each example, `(chosen + rejected,)`: the desirable ones first."""
        sides = labels.of_responses(len(chosen.policy), len(rejected.policy))
        parts = [
            certainty * self._value(scores, kl, label) + (1 - certainty) * self._value(scores, kl, not label)
            for scores, certainty, label in zip((chosen, rejected), sides, (True, False), strict=True)
        ]
        return torch.cat(parts)

    def _value(self, scores: Scores, kl: Tensor, desirable: bool) -> Tensor:
        """Return the loss of responses that are all desirable, or all undesirable."""
        if desirable:
            return self.desirable_weight * (1 - torch.sigmoid(self.beta * (scores.log_ratios - kl)))
        return self.undesirable_weight * (1 - torch.sigmoid(self.beta * (kl - scores.log_ratios)))


@dataclass(frozen=True)
class SFT(Loss):
    """Negative log-likelihood of the chosen responses, a mean over the tokens of each.

    The rejected ones and the reference only reach the metrics; rewards are plain log-ratios. Labels are not read.
    """

    paired: ClassVar[bool] = False

    beta: float = field(default=1.0, init=False)

    def __call__(self, chosen: Scores, rejected: Scores, kl: Tensor, labels: Labels = CERTAIN) -> Tensor:
        """Return the loss of each chosen response, `(chosen,)`, in nats a token."""
        return -chosen.policy / chosen.tokens
