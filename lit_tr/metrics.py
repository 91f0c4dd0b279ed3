"""Logged metrics of preferences: implicit rewards, margins, accuracies, log-probs, log-ratios."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed

from lit_tr.losses import Loss, Scores


def preference_metrics(loss: Loss, chosen: Scores, rejected: Scores, paired: bool) -> dict[str, Tensor]:
    """Return the values of each example by name, detached; their means are logged.

    The names are TRL's, and the same for all batches of a loss; a tensor is empty if the batch has no such value. The
    `log_ratios` are those of the data's responses: no estimate of a KL divergence, which takes samples of the policy.

    Args:
        loss: defines the rewards.
        chosen: scores of the preferred responses, `(chosen,)`.
        rejected: scores of the other responses, `(rejected,)`.
        paired: the two are responses to the same prompts, so that they have margins and accuracies. An accuracy is 1
            if the chosen response has the higher reward (`logps/accuracies`: log-prob), 1/2 if they are equal.

    Returns:
        `rewards/chosen` and `logps/chosen`, `(chosen,)`; `rewards/rejected` and `logps/rejected`, `(rejected,)`;
        `rewards/margins`, `rewards/accuracies` and `logps/accuracies`, `(pairs,)`, empty unless `paired`; with a
        reference `log_ratios`, `(chosen + rejected,)`; where the loss needs them `kl/chosen`, `(chosen,)`, and
        `kl/rejected`, `(rejected,)`. Log-probs, log-ratios and divergences are in nats, accuracies shares.

    Examples:
        >>> from lit_tr.losses import DPO
        >>> tokens = torch.tensor([5.0])
        >>> chosen = Scores(torch.tensor([-9.0]), tokens, reference=torch.tensor([-10.0]))
        >>> rejected = Scores(torch.tensor([-12.0]), tokens, reference=torch.tensor([-11.0]))
        >>> values = preference_metrics(DPO(beta=0.5), chosen, rejected, paired=True)
        >>> values["rewards/margins"], values["rewards/accuracies"], values["log_ratios"]
        (tensor([1.]), tensor([1.]), tensor([ 1., -1.]))
    """
    differences = chosen.policy - rejected.policy if paired else chosen.policy[:0]
    values = {
        **reward_metrics(loss, chosen, rejected, paired),
        "logps/chosen": chosen.policy,
        "logps/rejected": rejected.policy,
        "logps/accuracies": _share_above(differences),
    }
    if chosen.reference is not None:
        values["log_ratios"] = torch.cat([chosen.log_ratios, rejected.log_ratios])
    values |= {f"kl/{name}": one.kl for name, one in (("chosen", chosen), ("rejected", rejected)) if one.kl is not None}
    return {name: value.detach() for name, value in values.items()}


def reward_metrics(loss: Loss, chosen: Scores, rejected: Scores, paired: bool) -> dict[str, Tensor]:
    """Return what `preference_metrics` does of `rewards/...`."""
    rewards = [loss.rewards(chosen), loss.rewards(rejected)]
    margins = rewards[0] - rewards[1] if paired else rewards[0][:0]
    values = {
        "rewards/chosen": rewards[0],
        "rewards/rejected": rewards[1],
        "rewards/margins": margins,
        "rewards/accuracies": _share_above(margins),
    }
    return {name: value.detach() for name, value in values.items()}


def _share_above(differences: Tensor) -> Tensor:
    return (differences.sign() + 1) / 2


class Means:
    """Means by name over the values of many batches, on all ranks.

    Sums are kept on the device in float64, and no update synchronizes with it. All ranks must give the same names.

    Examples:
        >>> means = Means()
        >>> means.update({"loss": torch.tensor([1.0, 2.0])})
        >>> means.update({"loss": torch.tensor([6.0])})
        >>> means.compute()  # of the three examples
        {'loss': tensor(3.)}
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
        """Return the mean of each name with values, over all ranks, and reset, unless `keep`; a collective call."""
        names, sums, counts = list(self._sums), list(self._sums.values()), list(self._counts.values())
        if not keep:
            self.reset()
        if not names:
            return {}
        totals = torch.cat([torch.stack(sums), sums[0].new_tensor(counts)])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(totals)
        sums_of_all, counts_of_all = totals.split(len(names))
        means = (sums_of_all / counts_of_all).float()
        return {name: mean for name, mean, count in zip(names, means, counts_of_all.tolist(), strict=True) if count}

    def state(self) -> dict[str, Any]:
        """Return the sums and counts of this rank, on its device."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state(self, state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        """Go on from what `state` returned, on the device of the values to come."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])
