"""How often the implicit reward prefers the chosen response: a row of RewardBench, on any preference file."""

from typing import Any

import torch
from lightning.pytorch import Callback
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lit_tr.evaluation.calibration import calibration_error
from lit_tr.evaluation.intervals import wilson
from lit_tr.policy.sharding import of_ranks


class PreferenceAccuracy(Callback):
    """Prints, after a validation, the accuracy of the rewards on its pairs: overall, and for each `subset` of the rows.

    A pair is right if the chosen response has the higher reward; a tie counts 1/2. The reward is the loss's own, such
    as `beta * log(policy / other)`, where the other model is the initial policy if the module holds it, else the
    reference; it is said which. RewardBench (Lambert et al. 2024, arXiv 2403.13787) judges a policy that was trained by
    DPO in this way; the mean over all pairs that is printed here weighs no subset.
    """

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin with no pairs."""
        self._margins: list[Tensor] = []
        self._subsets: list[str | None] = []

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Keep the margins of a batch."""
        margins = outputs[_prefix(pl_module) + "rewards/margins"]
        self._margins.append(margins.float().cpu())
        self._subsets += (batch.subsets or [None] * len(margins)) if len(margins) else []

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Print the table on the first rank."""
        ranks = of_ranks((torch.cat([torch.zeros(0), *self._margins]), self._subsets))
        margins = torch.cat([one for one, _ in ranks])
        if trainer.is_global_zero and len(margins):
            Console().print(table(margins, [subset for _, found in ranks for subset in found], against(pl_module)))


def against(module: Any) -> str:
    """Return what the rewards of a module are taken against, in words."""
    if not module.loss.needs_reference:
        return f"{type(module.loss).__name__}'s own, without a reference"
    if module.start is not None:
        return "against the initial policy"
    return "against the reference, for the initial policy is not held (model.log_initial)"


def table(margins: Tensor, subsets: list[str | None], of: str) -> Table:
    """Return the accuracies as a table, a line for each subset.

    Args:
        margins: reward margins, `(pairs,)`.
        subsets: the subset of each pair; None where it has none.
        of: what the rewards are taken against.
    """
    lines = Table("", "pairs", "accuracy", "95 % interval", title=f"Accuracy of the rewards, {of}")
    right = (margins.sign() + 1) / 2
    for name in sorted({one for one in subsets if one is not None}):
        lines.add_row(name, *_cells(right[torch.tensor([one == name for one in subsets])]))
    lines.add_row("all", *_cells(right))
    lines.caption = f"calibration error {calibration_error(margins):.3f}"
    return lines


def _cells(right: Tensor) -> tuple[str, str, str]:
    low, high = wilson(right.sum().item(), len(right))
    return str(len(right)), f"{right.mean().item():.1%}", f"{low:.1%} to {high:.1%}"


def _prefix(module: Any) -> str:
    return "" if module.initial is None else "initial/"
