"""The interface of references: the model that a policy is compared with, and that may follow it.

A reference is not a torch module: its weights are outside of the module tree, so that no optimizer, weight average or
strategy takes them for the policy's. Only an adapter on the policy's own base is in the policy. The policy is an
argument of each method.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from lit_tr.data.batches import PairBatch
from lit_tr.policy.adapters import adapter_switched
from lit_tr.policy.compiled import options
from lit_tr.policy.logprobs import chunked_logits, scoring, sum_by_response, token_log_probs, vocabulary_log_probs
from lit_tr.policy.sharding import shard, write
from lit_tr.reference.averaging import Alpha

KL_TOKENS = 256
"""Most response tokens of a batch that the KL divergence is measured at."""


class Reference(ABC):
    """The model that a policy is compared with. Subclasses keep their arguments as attributes of the same names.

    `PreferenceModule` calls `setup`, `prepare`, `shard`, `on_fit_start`, `on_train_start` and `on_train_batch_start` in
    this order; a callback calls `update`. Each of them raises a `UserError` where the run does not go with this
    reference. Subclasses must override `prepare` and `update`, and `active` if they have neither `model` nor `adapter`.

    Attributes:
        moves: it can follow the policy.
        is_start: it is the policy as it was at the start.
        hard_only: it takes only hard updates of all layers.
        log_probs_only: it holds log-probs of the data's tokens and no model, so it goes with no loss that `needs_kl`.
        log_initial: whether the initial policy is logged by default, which may take a third model.
        adapter: name of its adapter on the policy's base, if it is one.
        model: its second model, if it has one.
        device: its device, if not the policy's.
        optional: prefixes of the names in `state_dict` that only some runs have.
    """

    moves: ClassVar[bool] = True
    is_start: ClassVar[bool] = False
    hard_only: bool = False
    log_probs_only: bool = False
    log_initial: ClassVar[bool] = True
    adapter: str | None = None
    model: nn.Module | None = None
    device: str | None = None
    optional: tuple[str, ...] = ()

    def setup(self, trainer: Any, module: Any) -> None:
        """Check that it works with a trainer, its callbacks and a module; no weights are loaded yet."""

    def check_policy(self, has_adapter: bool) -> None:
        """Check that it works with a policy that has an adapter, or has none; before weights are loaded, too."""

    @abstractmethod
    def prepare(self, policy: nn.Module) -> None:
        """Become a copy of the policy."""

    def shard(self, mesh: DeviceMesh, precision: str) -> None:
        """Shard the weights of the second model, if there is one, for a precision of the Trainer."""
        if self.model is not None:
            shard(self.model, mesh, precision)

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        """Prepare for training: weights have their final precision and device, and the rows are loaded."""

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Start training; a checkpoint has been restored."""

    def steps_ahead(self, step: int) -> int:
        """Return the number of optimizer steps after `step` whose batches are drawn as one chunk, at least 1."""
        return 1

    def on_train_batch_start(self, module: Any, batch: PairBatch) -> None:
        """Handle a batch before the policy is trained on it; `batch.drawn` is the chunk that it was drawn in."""

    def active(self, policy: nn.Module) -> AbstractContextManager[nn.Module]:
        """Return a context whose value is the reference's model: the second model, or the policy with its adapter."""
        return adapter_switched(policy, self.adapter) if self.model is None else nullcontext(self.model)

    @abstractmethod
    def update(self, policy: nn.Module, alpha: Alpha) -> dict[str, Any]:
        """Move towards the policy: `reference <- alpha * policy + (1 - alpha) * reference` (arXiv 2404.09656, Eq. 5).

        Returns:
            Metrics of the update by name, to be logged: numbers, or tensors of one, which nothing waits for.

        Raises:
            UserError: alpha is not in [0, 1], or not one that this reference takes.
        """

    def distance(self, policy: nn.Module) -> Tensor | float | None:
        """Return the Euclidean norm of the policy's weights less the reference's, all taken as one vector.

        A number or a scalar tensor, which nothing waits for; None if it is not known.
        """
        return None

    def tensors(self, policy: nn.Module) -> Iterable[Tensor]:
        """Return the tensors that an update changes, equal on all ranks unless they are sharded."""
        return self.state_dict().values()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors to save by attribute path: a moving second model's. An adapter's are in the policy."""
        weights = self.model.state_dict() if self.moves and self.model is not None else {}
        return {f"model.{name}": value for name, value in weights.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> list[str]:
        """Load the tensors of a checkpoint; return the names of missing ones."""
        own = self.state_dict()
        for name, value in state.items():
            if name in own:
                write(own[name], value, source=None)
        return sorted(own.keys() - state.keys())

    def rank_state(self) -> Any:
        """Return this rank's own state for a checkpoint; None for nothing."""
        return None

    def load_rank_state(self, states: list[Any], rank: int) -> None:
        """Load the states that the ranks have saved."""

    def _apply(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Move or cast the second model as the policy's module is."""
        if self.model is not None:
            self.model._apply(fn)

    def token_log_probs(self, policy: nn.Module, batch: PairBatch) -> Tensor:
        """Return the log-probs of scored tokens, `(scored tokens,)`: precomputed, or without gradient and dropout."""
        if batch.reference_log_probs is not None:
            return batch.reference_log_probs
        with self.active(policy) as model, scoring(model):
            return token_log_probs(model, self._placed(batch)).to(batch.lengths.device)

    def logits(self, policy: nn.Module, batch: PairBatch) -> Callable[[slice], Tensor]:
        """Return a function from a slice of the scored tokens to the logits before them, `(tokens, vocabulary)`.

        They are float32, without gradient and dropout, where the batch is. Only hidden states are held, and a call
        makes the logits of its tokens, in the precision of now: a backward pass may call it again.
        """
        with self.active(policy) as model, scoring(model):
            at, kind = chunked_logits(model, self._placed(batch)), next(model.parameters()).device.type
        dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

        def called(tokens: slice) -> Tensor:
            with self.active(policy) as model, scoring(model), torch.autocast(kind, dtype, enabled):
                return at(tokens).to(batch.lengths.device)

        return called

    def log_probs(self, policy: nn.Module, batch: PairBatch) -> Tensor:
        """Return the reference log-probs of the responses, `(responses,)`, in nats."""
        return sum_by_response(batch, self.token_log_probs(policy, batch))

    def kl(self, policy: nn.Module, batch: PairBatch) -> tuple[Tensor, int]:
        """Return the KL divergence of the policy from the reference, summed over response tokens, and their number.

        The sum is a scalar, in nats, over the full vocabulary, at up to 256 tokens, evenly spaced over the chosen and
        rejected responses: no token is sampled, so it is never negative, and 0 only if the two agree. The contexts are
        the data's: it is no measure of the divergence on the policy's own samples.
        """
        total = sum(batch.sizes[: batch.chosen + batch.rejected])
        tokens = torch.linspace(0, total - 1, min(total, KL_TOKENS), device=batch.lengths.device).long()
        with scoring(policy):
            ours = vocabulary_log_probs(policy, batch, tokens)
        with self.active(policy) as model, scoring(model):
            moved = self._placed(batch)
            theirs = vocabulary_log_probs(model, moved, tokens.to(moved.lengths.device)).to(ours.device)
        return F.kl_div(theirs, ours, log_target=True, reduction="sum"), len(tokens)

    def _placed(self, batch: PairBatch) -> PairBatch:
        return batch if self.device is None else batch.to(self.device)


def updates_of(trainer: Any) -> list[Any]:
    """Return the callbacks that move the reference of a trainer's module."""
    return [c for c in trainer.callbacks if getattr(c, "reference", None) == "reference" and hasattr(c, "next_update")]


def frozen_copy(policy: nn.Module, make: Callable[[nn.Module], nn.Module] = deepcopy) -> nn.Module:
    """Return a frozen copy of a policy, by a function that keeps the order of its modules."""
    copy = make(policy).requires_grad_(False).eval()
    for ours, theirs in zip(policy.modules(), copy.modules(), strict=True):
        if ours._compiled_call_impl is not None:  # a copy is not compiled
            theirs.compile(**options())
    return copy
