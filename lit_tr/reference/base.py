"""What a reference policy is, and the one that stays as it is.

A reference is built from the policy (`prepare`), scores batches, and follows the policy (`update`). The policy is
handed to it each time, so that no second handle to it ends up in a state_dict, a copy or a sharding plan.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from lit_tr.data.batches import PairBatch
from lit_tr.errors import UserError
from lit_tr.policy.adapters import adapter_switched, add_adapter_copy, has_adapter, is_base
from lit_tr.policy.logprobs import response_log_probs, scoring, vocabulary_log_probs
from lit_tr.policy.sharding import shard
from lit_tr.reference.averaging import Alpha

KL_PLACES = 256


class Reference(nn.Module, ABC):
    """A policy that another one is held near to.

    Attributes:
        moves: it can follow the policy. A second model that cannot is made again from the policy's source, so no
            checkpoint holds it.
        hard_only: it follows by copies of all layers alone.
    """

    moves = True
    hard_only = False

    @abstractmethod
    def prepare(self, policy: nn.Module) -> None:
        """Become the policy as it is now.

        Raises:
            UserError: this kind of reference cannot serve this kind of policy.
        """

    def shard(self, mesh: DeviceMesh) -> None:
        """Part the weights of a second model, if there is one, among devices."""

    @abstractmethod
    def active(self, policy: nn.Module) -> AbstractContextManager[nn.Module]:
        """Return a context whose value is a model that computes as this reference."""

    @abstractmethod
    def update(self, policy: nn.Module, alpha: Alpha) -> dict[str, float]:
        """Move towards the policy: `reference <- alpha * policy + (1 - alpha) * reference` (arXiv 2404.09656, Eq. 5).

        Returns:
            Figures of the update, by name, for the log.

        Raises:
            UserError: alpha is not in (0, 1], or this kind of reference does not move.
        """

    def distance(self, policy: nn.Module) -> float | None:
        """Return how far the policy's weights are from the reference's, a Euclidean norm; None if it cannot tell."""
        return None

    def tensors(self, policy: nn.Module) -> Iterable[Tensor]:
        """Return what an update changes; equal on all ranks where each of them holds all of it."""
        return chain(self.parameters(), self.buffers())

    def log_probs(self, policy: nn.Module, batch: PairBatch) -> Tensor:
        """Return the log-probs of the responses under the reference, `(rows,)`, without gradient and dropout."""
        with self.active(policy) as model, scoring(model):
            return response_log_probs(model, batch)

    def kl(self, policy: nn.Module, batch: PairBatch) -> tuple[Tensor, int]:
        """Return the KL divergence of the policy from the reference, a sum over some response tokens, and their number.

        It is in nats, over the whole vocabulary, at up to 256 places, evenly spaced over the batch's responses: no
        token is sampled, so it is never negative, and 0 only where the two agree. The contexts are those of the data:
        how far the policies differ on text of the policy's own it does not say.
        """
        total = int(batch.lengths.sum())
        places = torch.linspace(0, total - 1, min(total, KL_PLACES), device=batch.lengths.device).long()
        with scoring(policy):
            ours = vocabulary_log_probs(policy, batch, places)
        with self.active(policy) as model, scoring(model):
            theirs = vocabulary_log_probs(model, batch, places)
        return F.kl_div(theirs, ours, log_target=True, reduction="sum"), len(places)


class FrozenReference(Reference):
    """The policy as it was at the start, for plain DPO, IPO and KTO.

    With a new adapter it costs nothing: it is the base, the adapter switched off. Where the policy starts from a
    trained adapter it is a frozen copy of that adapter, and for a full model a second model.
    """

    moves = False

    def __init__(self) -> None:
        super().__init__()
        self.model: nn.Module | None = None
        self._adapter: str | None = None

    def prepare(self, policy: nn.Module) -> None:
        """Become the policy as it is now."""
        if not has_adapter(policy):
            self.model = frozen_copy(policy)
        elif not is_base(policy):
            self._adapter = "initial"
            add_adapter_copy(policy, self._adapter)

    def shard(self, mesh: DeviceMesh) -> None:
        """Part the weights of the second model among devices."""
        if self.model is not None:
            shard(self.model, mesh)

    @contextmanager
    def active(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Return a context whose value is a model that computes as the policy did at the start."""
        if self.model is not None:
            yield self.model
            return
        with adapter_switched(policy, self._adapter):
            yield policy

    def update(self, policy: nn.Module, alpha: Alpha) -> dict[str, float]:
        """Refuse.

        Raises:
            UserError: always.
        """
        raise UserError("FrozenReference does not move: take CopyReference or AdapterReference, or no reference update")


def frozen_copy(policy: nn.Module, make: Callable[[nn.Module], nn.Module] = deepcopy) -> nn.Module:
    """Return a copy of a policy that is not trained, made by a function that keeps its modules' order."""
    copy = make(policy).requires_grad_(False).eval()
    for ours, theirs in zip(policy.modules(), copy.modules(), strict=True):
        if ours._compiled_call_impl is not None:  # which a copy loses
            theirs.compile(dynamic=True)
    return copy
