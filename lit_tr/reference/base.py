"""What a reference is: a policy that the trained one is held near to, and that may follow it.

A reference is no torch module: what it holds stands outside of the module tree, so that no optimizer, no average of
weights and no strategy takes it for a part of the policy. Only an adapter that lies on the policy's own base is in the
policy. The policy is handed to the reference each time.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from lit_tr.data.batches import PairBatch
from lit_tr.policy.logprobs import scoring, sum_by_response, token_log_probs, vocabulary_log_probs
from lit_tr.policy.sharding import write
from lit_tr.reference.averaging import Alpha

KL_TOKENS = 256
"""Response tokens of a batch that a KL divergence is measured at."""


class Reference(ABC):
    """A policy that another one is held near to. Subclasses name their arguments as the attributes that keep them.

    `PreferenceModule` calls `setup`, `prepare`, `shard`, `on_fit_start`, `on_train_start` and `on_train_batch_start` in
    this order; a callback calls `update`. None of them has to be overridden but `prepare`, `active` and `update`.

    Attributes:
        moves: it can follow the policy.
        hard_only: it follows by copies of all layers alone.
        log_initial: whether the initial policy is logged beside it by default, which may take a third model.
        adapter: name of the adapter on the policy's base that it is, if it is one.
        model: the second model that it is, if it is one.
        device: where it is held and scores, if not on the policy's device.
        optional: what the names in `state_dict` begin with that are there in some runs alone.
    """

    moves: ClassVar[bool] = True
    hard_only: bool = False
    log_initial: ClassVar[bool] = True
    adapter: str | None = None
    model: nn.Module | None = None
    device: str | None = None
    optional: tuple[str, ...] = ()

    def setup(self, trainer: Any, module: Any) -> None:
        """Check that it goes with a trainer, its callbacks and a module; no weights are loaded yet.

        Raises:
            UserError: it does not.
        """

    @abstractmethod
    def prepare(self, policy: nn.Module) -> None:
        """Become the policy as it is now.

        Raises:
            UserError: this kind of reference cannot serve this kind of policy.
        """

    def shard(self, mesh: DeviceMesh) -> None:
        """Shard the weights of a second model, if there is one."""

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        """Get ready to train: precision and device of all weights are what they will be, the rows are there."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Begin to train; what a checkpoint holds has been restored."""

    def steps_ahead(self, step: int) -> int:
        """Return of how many optimizer steps after step `step` the batches are drawn together, 1 or more."""
        return 1

    def on_train_batch_start(self, module: Any, batch: PairBatch) -> None:
        """See a batch before the policy is trained on it; `batch.drawn` holds those that were drawn with it."""

    @abstractmethod
    def active(self, policy: nn.Module) -> AbstractContextManager[nn.Module]:
        """Return a context whose value is a model that computes as this reference."""

    @abstractmethod
    def update(self, policy: nn.Module, alpha: Alpha) -> dict[str, float]:
        """Move towards the policy: `reference <- alpha * policy + (1 - alpha) * reference` (arXiv 2404.09656, Eq. 5).

        Returns:
            Figures of the update, by name, for the log.

        Raises:
            UserError: alpha is not in [0, 1], or this kind of reference does not move so.
        """

    def distance(self, policy: nn.Module) -> float | None:
        """Return how far the policy's weights are from the reference's, a Euclidean norm; None if it cannot tell."""
        return None

    def tensors(self, policy: nn.Module) -> Iterable[Tensor]:
        """Return what an update changes; equal on all ranks where each of them holds all of it."""
        return self.state_dict().values()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that a checkpoint holds, by paths of attributes: a second model's that can move.

        Those of an adapter are the policy's.
        """
        weights = self.model.state_dict() if self.moves and self.model is not None else {}
        return {f"model.{name}": value for name, value in weights.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> list[str]:
        """Take the tensors of a checkpoint; return the names of those that are missing in it."""
        own = self.state_dict()
        for name, value in state.items():
            if name in own:
                write(own[name], value)
        return sorted(own.keys() - state.keys())

    def rank_state(self) -> Any:
        """Return what a checkpoint holds beside tensors, of this rank alone; None for nothing."""
        return None

    def load_rank_state(self, states: list[Any], rank: int) -> None:
        """Take what the ranks have saved."""

    def _apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move or cast a second model with the module that holds the policy."""
        if self.model is not None:
            self.model._apply(fn)

    def token_log_probs(self, policy: nn.Module, batch: PairBatch) -> Tensor:
        """Return the log-probs of the scored tokens under the reference, `(scored tokens,)`.

        They are those that the batch has, if they were computed ahead; they have no gradient and no dropout.
        """
        if batch.reference_log_probs is not None:
            return batch.reference_log_probs
        with self.active(policy) as model, scoring(model):
            return token_log_probs(model, self._there(batch)).to(batch.lengths.device)

    def log_probs(self, policy: nn.Module, batch: PairBatch) -> Tensor:
        """Return the log-probs of the responses under the reference, `(responses,)`, in nats."""
        return sum_by_response(batch, self.token_log_probs(policy, batch))

    def kl(self, policy: nn.Module, batch: PairBatch) -> tuple[Tensor, int]:
        """Return the KL divergence of the policy from the reference, a sum over some response tokens, and their number.

        It is in nats, over the whole vocabulary, at up to 256 tokens, evenly spaced over the chosen and rejected
        responses: no token is sampled, so it is never negative, and 0 only where the two agree. The contexts are those
        of the data: how far the policies differ on text of the policy's own it does not say.
        """
        total = int(batch.lengths[: batch.chosen + batch.rejected].sum())
        tokens = torch.linspace(0, total - 1, min(total, KL_TOKENS), device=batch.lengths.device).long()
        with scoring(policy):
            ours = vocabulary_log_probs(policy, batch, tokens)
        with self.active(policy) as model, scoring(model):
            there = self._there(batch)
            theirs = vocabulary_log_probs(model, there, tokens.to(there.lengths.device)).to(ours.device)
        return F.kl_div(theirs, ours, log_target=True, reduction="sum"), len(tokens)

    def _there(self, batch: PairBatch) -> PairBatch:
        return batch if self.device is None else batch.to(self.device)


def updates_of(trainer: Any) -> list[Any]:
    """Return the callbacks that move the reference of a trainer's module."""
    return [c for c in trainer.callbacks if getattr(c, "reference", None) == "reference" and hasattr(c, "next_update")]


def frozen_copy(policy: nn.Module, make: Callable[[nn.Module], nn.Module] = deepcopy) -> nn.Module:
    """Return a copy of a policy that is not trained, made by a function that keeps its modules' order."""
    copy = make(policy).requires_grad_(False).eval()
    for ours, theirs in zip(policy.modules(), copy.modules(), strict=True):
        if ours._compiled_call_impl is not None:  # which a copy loses
            theirs.compile(dynamic=True)
    return copy
