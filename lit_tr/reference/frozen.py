"""FrozenReference: the policy as it was at the start."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.device_mesh import DeviceMesh

from lit_tr.errors import UserError
from lit_tr.policy.adapters import adapter_switched, add_adapter_copy, has_adapter, is_base
from lit_tr.policy.sharding import shard
from lit_tr.reference.averaging import Alpha
from lit_tr.reference.base import Reference, frozen_copy


class FrozenReference(Reference):
    """The policy as it was at the start, for plain DPO, IPO and KTO.

    With a new adapter it costs nothing: it is the base, the adapter switched off. Where the policy starts from a
    trained adapter it is a frozen copy of that adapter, and for a full model a second model. It is made again from the
    policy's source, so no checkpoint holds it.
    """

    moves = False

    def prepare(self, policy: nn.Module) -> None:
        """Become the policy as it is now."""
        if not has_adapter(policy):
            self.model = frozen_copy(policy)
        elif not is_base(policy):
            self.adapter = "initial"
            add_adapter_copy(policy, self.adapter)

    def shard(self, mesh: DeviceMesh) -> None:
        """Shard the weights of the second model."""
        if self.model is not None:
            shard(self.model, mesh)

    @contextmanager
    def active(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Return a context whose value is a model that computes as the policy did at the start."""
        if self.model is not None:
            yield self.model
            return
        with adapter_switched(policy, self.adapter):
            yield policy

    def update(self, policy: nn.Module, alpha: Alpha) -> dict[str, float]:
        """Refuse.

        Raises:
            UserError: always.
        """
        raise UserError("FrozenReference does not move: take CopyReference or AdapterReference, or no reference update")
