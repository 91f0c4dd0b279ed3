"""A reference, a loss, a format and a module, as somebody would write them in one file of his own."""

from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass

import torch

from lit_tr import PreferenceModule
from lit_tr.data.example import Example
from lit_tr.losses import Loss
from lit_tr.reference import Reference


class SignReference(Reference):
    """Follows the policy by steps of one size in each weight."""

    def __init__(self, size: float = 1e-3):
        self.size = size

    def prepare(self, policy):
        self.model = deepcopy(policy).requires_grad_(False).eval()

    def active(self, policy):
        return nullcontext(self.model)

    @torch.no_grad()
    def update(self, policy, alpha):
        for ours, theirs in zip(policy.parameters(), self.model.parameters(), strict=True):
            theirs.add_((ours - theirs).sign(), alpha=alpha * self.size)
        return {}


@dataclass(frozen=True)
class Hinge(Loss):
    """The hinge loss of SLiC, on the log-ratios."""

    beta: float = 0.1
    delta: float = 1.0

    def __call__(self, chosen, rejected, statistics=None):
        return (self.delta - self.beta * (chosen.log_ratios - rejected.log_ratios)).relu()


def quiz(row) -> Example:
    return Example(prompt=row["question"], chosen=row["right"], rejected=row["wrong"])


class ScaledModule(PreferenceModule):
    """Multiplies the loss."""

    def __init__(self, factor: float = 1.0, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def training_step(self, batch, batch_idx):
        return self.factor * super().training_step(batch, batch_idx)
