"""What is logged of preference scores: implicit rewards, margins, accuracy, log-ratios."""

from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from lit_tr.losses import Scores


def preference_metrics(chosen: Scores, rejected: Scores, beta: float, paired: bool) -> dict[str, Tensor]:
    """Return the values of each example by name; their means are what is logged.

    A reward is `beta * log_ratio`, the implicit reward of Rafailov et al. 2023 (arXiv 2305.18290), Sec. 5. The
    log-ratios are those of the data's responses: they are no estimate of a KL divergence, which takes samples of the
    policy.

    Args:
        chosen: scores of the preferred responses, `(chosen,)`.
        rejected: scores of the other responses, `(rejected,)`.
        beta: scale of the rewards.
        paired: the two are responses to the same prompts, so that they have margins and accuracies. An accuracy is 1
            where the chosen response has the higher reward (the higher log-prob under the policy), 1/2 where they are
            equal.
    """
    values = {
        "rewards/chosen": beta * chosen.log_ratios,
        "rewards/rejected": beta * rejected.log_ratios,
        "log_probs/chosen": chosen.policy,
        "log_probs/rejected": rejected.policy,
        "log_ratio": torch.cat([chosen.log_ratios, rejected.log_ratios]),
    }
    if paired:
        margins = values["rewards/chosen"] - values["rewards/rejected"]
        values["rewards/margin"] = margins
        values["rewards/accuracy"] = _share_above(margins)
        values["log_probs/accuracy"] = _share_above(chosen.policy - rejected.policy)
    return {name: value.detach() for name, value in values.items()}


def _share_above(differences: Tensor) -> Tensor:
    return (differences.sign() + 1) / 2


class Means(nn.Module):
    """Means over all the examples of an evaluation, on all ranks, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics = nn.ModuleDict()

    def update(self, values: dict[str, Tensor]) -> None:
        """Add the values of some examples, each `(examples,)`; a new name starts a new mean."""
        for name, value in values.items():
            if name not in self.metrics:
                self.metrics[name] = MeanMetric(nan_strategy="disable").to(value.device)
            cast(MeanMetric, self.metrics[name]).update(value)

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of each name over all examples and ranks, and start again."""
        means = {name: cast(MeanMetric, metric).compute() for name, metric in self.metrics.items()}
        self.metrics.clear()
        return means
