"""Two reward models, or two policies, that choose each other's pairs, and tell which labels are wrong."""

import json
import math
from abc import abstractmethod
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from lit_tr.data.batches import PairBatch
from lit_tr.errors import UserError
from lit_tr.losses import Loss
from lit_tr.module import PreferenceModule
from lit_tr.policy.loading import PretrainedPolicy
from lit_tr.policy.logprobs import scoring
from lit_tr.policy.sharding import of_ranks
from lit_tr.reference import Reference
from lit_tr.rewards.training import RewardModule
from lit_tr.warned import warn

FLIPPED = "flipped.jsonl"
"""File of the pairs that are taken for flipped, in the run's folder."""
AT_A_TIME = 16
"""Pairs that are scored at a time after training."""
PERTURBED = 0.01
"""By how much the weights of a peer differ at first, in standard deviations of a tensor."""


class Collaboration(PreferenceModule):
    """A module and a peer of its kind on noisy pairs: each learns from what the other finds consistent.

    Collaborative reward modeling (Zhang et al. 2025, arXiv 2505.10597): of each batch a model trains on the pairs with
    the highest margins, chosen reward less rejected one, of its peer. The share of pairs that it trains on falls
    linearly from 1 to `1 - noise` over the first `steps` optimizer steps, the schedule of co-teaching (Han et al. 2018,
    arXiv 1804.06872, Sec. 2); their number is rounded up. The paper's own schedule sorts pairs from easy to hard, and
    is another.

    `train/loss` is the sum of both losses, `train/kept` the share of pairs that the first model trains on; all other
    figures, and what `lit-tr export` writes, are the first model's. After training `flipped.jsonl` in the run's folder
    lists the training pairs that both models find wrong: `location` of the row, and the `margins`, both negative.
    `lit_tr.data.Without` trains on the others. That takes one more pass over the rows.
    """

    noise: float
    steps: int
    peer: PreferenceModule

    def _begin(self, peer: PreferenceModule, noise: float, steps: int) -> None:
        """Take the peer, and the schedule."""
        if not 0 <= noise < 1 or steps < 1:
            raise UserError(f"{type(self).__name__}: noise {noise} must be in [0, 1), steps {steps} at least 1")
        self.noise, self.steps, self.peer, self._has_started = noise, steps, peer, False

    @abstractmethod
    def _differ(self) -> None:
        """Make the peer another one than this module."""

    @property
    def trained(self) -> list[nn.Parameter]:
        """The parameters that the optimizer gets: those of both models."""
        return [*super().trained, *self.peer.trained]

    @property
    def kept(self) -> float:
        """The share of pairs that a model trains on at this step."""
        return 1 - self.noise * min(self.global_step / self.steps, 1.0)

    def setup(self, stage: str) -> None:
        """Set up both modules."""
        super().setup(stage)
        for held in self.peer.held:
            held.setup(self.trainer, self)

    def configure_model(self) -> None:
        """Load both models, once."""
        if hasattr(self, "policy"):
            return
        if self.device_mesh is not None:
            raise UserError(f"{type(self).__name__} does not shard its weights: take trainer.strategy ddp")
        self.peer.configure_model()
        with torch.no_grad():
            self._differ()
        super().configure_model()

    def on_train_batch_end(self, outputs: Any, batch: PairBatch, batch_idx: int) -> None:
        """Say once where batches are too small to leave out a pair."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        if not self._has_started and self._count(1 - self.noise, len(batch)) == len(batch) and self.noise:
            warn(
                f"{type(self).__name__}: a batch of {len(batch)} pairs leaves out none with noise {self.noise:g}: give "
                f"data.batch_size {math.ceil(1 / self.noise)} or more"
            )
        self._has_started = True

    def on_fit_end(self) -> None:
        """Write the training pairs that both models take for flipped; a resume of a run at its end does so, too."""
        rows: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        folder = Path(self.trainer.log_dir or self.trainer.default_root_dir)  # a collective call
        if (examples := getattr(rows, "examples", {}).get("train")) is None:
            rank_zero_info(f"{type(self).__name__}: rows that are streamed are not gone over again for {FLIPPED}")
            return
        mine, found = range(self.global_rank, len(examples), self.trainer.world_size), list[dict[str, Any]]()
        for numbers in (mine[start : start + AT_A_TIME] for start in range(0, len(mine), AT_A_TIME)):
            margins = self.margins(self.placed(rows.collator([examples[i] for i in numbers]))).tolist()
            both = zip(numbers, margins, strict=True)
            found += [{"location": examples.location(i), "margins": some} for i, some in both if max(some) < 0]
        lines = [json.dumps(one, ensure_ascii=False) + "\n" for part in of_ranks(found) for one in part]
        if self.trainer.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / FLIPPED).write_text("".join(lines))
        rank_zero_info(f"both models take {len(lines)} of {len(examples)} pairs for flipped: {folder / FLIPPED}")

    def margins(self, batch: PairBatch) -> Tensor:
        """Return the reward of each chosen response less the rejected one's, by both models, `(pairs, 2)`."""
        with scoring(self), self._precision():
            values = [model(batch, None)["rewards/margins"] for model in (super()._evaluate, self.peer._evaluate)]
        return torch.stack(values, dim=1)

    def _evaluate(self, batch: PairBatch, initial: Reference | None, **options: bool) -> dict[str, Any]:
        ours = super()._evaluate(batch, initial, **options)
        if not options.get("training"):
            return ours
        theirs = self.peer._evaluate(batch, None, training=True)
        kept = [self._most_consistent(one["rewards/margins"]) for one in (theirs, ours)]
        losses = [one["loss"] * mask / mask.mean() for one, mask in zip((ours, theirs), kept, strict=True)]
        return ours | {"loss": losses[0] + losses[1], "kept": kept[0]}

    def _most_consistent(self, margins: Tensor) -> Tensor:
        """Return 1 for the pairs of the highest margins that a model trains on, else 0, `(pairs,)`."""
        count = self._count(self.kept, len(margins))
        return torch.zeros_like(margins).index_fill(0, margins.topk(count).indices, 1.0)

    @staticmethod
    def _count(share: float, pairs: int) -> int:
        return math.ceil(share * pairs)


class CollaborativeReward(Collaboration, RewardModule):
    """Trains a reward model on noisy pairs, and a peer beside it; see `Collaboration`.

    Args:
        policy: as for `RewardModule`; it is loaded twice.
        noise: share of the labels that are taken to be wrong, below 1.
        steps: optimizer steps until so many are left out.
        margin_scale: as for `RewardModule`.
        optimizer: as for `RewardModule`; one for both.
        lr_scheduler: as for `RewardModule`.

    Raises:
        UserError: noise is not in [0, 1), steps is below 1, or weights are sharded; and as for `RewardModule`.
    """

    def __init__(
        self,
        policy: PretrainedPolicy | str | Path | nn.Module,
        noise: float = 0.2,
        steps: int = 500,
        margin_scale: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(policy, margin_scale, optimizer, lr_scheduler)
        self._begin(RewardModule(deepcopy(policy), margin_scale), noise, steps)

    def _differ(self) -> None:
        head: Any = self.peer.reward_head
        nn.init.normal_(head.weight, std=1 / (head.weight.numel() + 1))  # or two full models would stay one


class CollaborativePolicy(Collaboration):
    """Trains a policy on noisy pairs by its implicit reward, and a peer beside it; see `Collaboration`.

    Where pairs are few, implicit rewards find more of the flipped ones than reward models do: see the guide.

    Args:
        policy: as for `PreferenceModule`; it is loaded twice.
        reference: a reference that does not move.
        loss: a loss of pairs.
        noise: share of the labels that are taken to be wrong, below 1.
        steps: optimizer steps until so many are left out.
        optimizer: as for `PreferenceModule`; one for both.
        lr_scheduler: as for `PreferenceModule`.

    Raises:
        UserError: noise is not in [0, 1), steps is below 1, the reference moves, the loss takes no pairs, or
            weights are sharded; and as for `PreferenceModule`.
    """

    def __init__(
        self,
        policy: PretrainedPolicy | str | Path | nn.Module,
        reference: Reference | None,
        loss: Loss,
        noise: float = 0.2,
        steps: int = 500,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(policy, reference, loss, optimizer, lr_scheduler, log_initial=False)
        if self.reference is not None and self.reference.moves:
            raise UserError("CollaborativePolicy: its reference must not move: take lit_tr.reference.FrozenReference")
        if not loss.paired or loss.mismatched:
            raise UserError(f"CollaborativePolicy: {type(loss).__name__} does not compare the two responses of a pair")
        self._begin(PreferenceModule(deepcopy(policy), deepcopy(reference), loss, log_initial=False), noise, steps)

    def _differ(self) -> None:
        for param in self.peer.trained:  # or two full policies would stay one
            param.add_(torch.randn_like(param) * param.std(correction=0), alpha=PERTURBED)
