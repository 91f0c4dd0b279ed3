"""Preference losses: DPO, IPO, KTO, SFT.

A loss is a frozen dataclass. It takes the log-probs of the chosen and of the rejected responses under the policy and
under the reference, and returns one value for each example. It knows nothing of models, batches or ranks.

Log-probs are in nats, summed over the tokens of a response (its end-of-sequence token is one of them).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

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
