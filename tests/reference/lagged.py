"""A reference of somebody's own that needs all hooks: the policy of some updates ago."""

from contextlib import nullcontext

from torch import nn

from lit_tr.errors import UserError
from lit_tr.reference import Reference
from lit_tr.reference.base import frozen_copy


class LaggedReference(Reference):
    """The policy as it was `lag` updates ago, and a count of the batches that it has seen."""

    def __init__(self, lag: int = 2):
        self.lag, self.batches, self.log = lag, 0, []

    def setup(self, trainer, module):
        self.log = ["setup"]
        if trainer.accumulate_grad_batches > 4:
            raise UserError("LaggedReference counts up to 4 batches a step")

    def prepare(self, policy):
        self.log.append("prepare")
        self.copies = nn.ModuleList(frozen_copy(policy) for _ in range(self.lag))

    def on_fit_start(self, trainer, module):
        self.log.append("on_fit_start")

    def on_train_start(self, trainer, module):
        self.log.append("on_train_start")

    def on_train_batch_start(self, module, batch):
        self.batches += 1

    def active(self, policy):
        return nullcontext(self.copies[0])

    def update(self, policy, alpha):
        for older, newer in zip(self.copies, [*self.copies[1:], policy], strict=True):
            older.load_state_dict(newer.state_dict())
        return {"lag": float(self.lag)}

    def state_dict(self):
        return {f"copies.{name}": value for name, value in self.copies.state_dict().items()}

    def rank_state(self):
        return self.batches

    def load_rank_state(self, states, rank):
        self.batches = states[rank]

    def _apply(self, fn):
        self.copies._apply(fn)
