"""What is logged of preference scores: implicit rewards, margins, accuracies, log-probs, log-ratios."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed

from lit_tr.losses import Loss, Scores


def preference_metrics(loss: Loss, chosen: Scores, rejected: Scores, paired: bool) -> dict[str, Tensor]:
    """Return the values of each example by name, detached; their means are what is logged.

    The names are TRL's. They are the same for all batches of a loss; where a batch has no such value the tensor is
    empty. The `log_ratios` are those of the data's responses: they are no estimate of a KL divergence, which takes
    samples of the policy.

    Args:
        loss: its rewards are what is compared.
        chosen: scores of the preferred responses, `(chosen,)`.
        rejected: scores of the other responses, `(rejected,)`.
        paired: the two are responses to the same prompts, so that they have margins and accuracies. An accuracy is 1
            where the chosen response has the higher reward (the higher log-prob under the policy), 1/2 where they are
            equal.
    """
    rewards = [loss.rewards(chosen), loss.rewards(rejected)]
    margins = rewards[0] - rewards[1] if paired else rewards[0][:0]
    differences = chosen.policy - rejected.policy if paired else chosen.policy[:0]
    values = {
        "rewards/chosen": rewards[0],
        "rewards/rejected": rewards[1],
        "rewards/margins": margins,
        "rewards/accuracies": _share_above(margins),
        "logps/chosen": chosen.policy,
        "logps/rejected": rejected.policy,
        "logps/accuracies": _share_above(differences),
    }
    if chosen.reference is not None:
        values["log_ratios"] = torch.cat([chosen.log_ratios, rejected.log_ratios])
    return {name: value.detach() for name, value in values.items()}


def _share_above(differences: Tensor) -> Tensor:
    return (differences.sign() + 1) / 2


class Means:
    """Means by name over all the values of some batches, on all ranks.

    Sums are kept on the device, in float64, and no update waits for it. All ranks must give the same names.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget all values."""
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def update(self, values: Mapping[str, Tensor]) -> None:
        """Add the values of some examples, each `(examples,)`; a new name starts a new mean."""
        for name, value in values.items():
            self._sums[name] = value.detach().sum(dtype=torch.float64) + self._sums.get(name, 0.0)
            self._counts[name] = value.numel() + self._counts.get(name, 0)

    def compute(self, keep: bool = False) -> dict[str, Tensor]:
        """Return the mean of each name that has values, over those of all ranks; start again, unless they are kept.

        It is to be called on all ranks.
        """
        names, sums, counts = list(self._sums), list(self._sums.values()), list(self._counts.values())
        if not keep:
            self.reset()
        if not names:
            return {}
        totals = torch.stack([*sums, *(sums[0].new_tensor(count) for count in counts)])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(totals)
        means, seen = (totals[: len(names)] / totals[len(names) :]).float(), totals[len(names) :].tolist()
        return {name: mean for name, mean, count in zip(names, means, seen, strict=True) if count}

    def state(self) -> dict[str, Any]:
        """Return the sums and counts of this rank, on the device of the values."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state(self, state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        """Go on from what `state` returned, on the device of the values to come."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])
