"""FrozenReference: the policy as it was at the start."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from lit_tr.data.batches import PairBatch
from lit_tr.errors import UserError
from lit_tr.policy.adapters import adapter_switched, add_adapter_copy, has_adapter, is_base
from lit_tr.policy.sharding import of_ranks, shard
from lit_tr.reference import ahead
from lit_tr.reference.averaging import Alpha, checksum
from lit_tr.reference.base import Reference, frozen_copy


class FrozenReference(Reference):
    """The policy as it was at the start, for plain DPO, IPO and KTO.

    With a new adapter it costs nothing: it is the base, the adapter switched off. Where the policy starts from a
    trained adapter it is a frozen copy of that adapter, and for a full model a second model. It is made again from the
    policy's source, so no checkpoint holds it.

    Args:
        precompute: train a full model with one model in memory: the policy scores all rows of training and validation
            once before the first step. KTO's KL rows are then those of the set, each prompt with the responses of the
            row before it, and not drawn anew with each batch.
        folder: where the log-probs are kept, and found again by a hash of model and rows; None takes
            `reference_log_probs` in `trainer.default_root_dir`.
    """

    moves = False

    def __init__(self, precompute: bool = False, folder: str | None = None) -> None:
        self.precompute, self.folder = precompute, folder
        self._is_ahead = False
        self._known: dict[str, str] = {}

    def setup(self, trainer: Any, module: Any) -> None:
        """Check that there are rows to be scored, if they are to be.

        Raises:
            UserError: the rows cannot be had before training.
        """
        self._is_ahead = self.precompute and trainer.state.fn == TrainerFn.FITTING
        if self._is_ahead and "train" not in getattr(trainer.datamodule, "examples", {}):
            raise UserError(
                "FrozenReference: precompute scores the rows of a PreferenceDataModule before training, and there are "
                "none: leave data.buffer out, or precompute"
            )

    def prepare(self, policy: nn.Module) -> None:
        """Become the policy as it is now.

        Raises:
            UserError: rows are to be scored ahead for an adapter.
        """
        if self._is_ahead and has_adapter(policy):
            raise UserError(
                "FrozenReference: precompute saves a second model, and with an adapter there is none: leave it out"
            )
        if not has_adapter(policy):
            self.model = None if self._is_ahead else frozen_copy(policy)
        elif not is_base(policy):
            self.adapter = "initial"
            add_adapter_copy(policy, self.adapter)

    def shard(self, mesh: DeviceMesh) -> None:
        """Shard the weights of the second model."""
        if self.model is not None:
            shard(self.model, mesh)

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        """Let the policy score all rows, or find what it has said of them.

        Raises:
            UserError: the run is resumed with other rows, or without the file.
        """
        if not self._is_ahead:
            return
        folder = Path(self.folder or Path(trainer.default_root_dir) / "reference_log_probs")
        known = self._known.copy()  # of a run that is resumed, whose policy has moved
        model = "" if known else of_ranks(checksum(module.policy.state_dict().values()).item())
        for name in ("train", "val"):
            if name not in trainer.datamodule.examples:
                continue
            rows = ahead.Rows(trainer.datamodule, name)
            found = known.get(name) or _hash(rows.digest(), model, trainer.precision)
            path = folder / f"{found}.safetensors"
            exists = all(of_ranks(path.exists()))
            if known and not exists:
                raise UserError(f"{path}: the initial policy's log-probs are gone: put the file there, or start anew")
            scored = ahead.load(path, rows) if exists else ahead.score(rows, module)
            if trainer.is_global_zero and not exists:
                ahead.save(path, rows, scored)
            rows.attach(scored)
            self._known[name] = found

    @contextmanager
    def active(self, policy: nn.Module) -> Iterator[nn.Module]:
        """Return a context whose value is a model that computes as the policy did at the start.

        Raises:
            UserError: it holds no model.
        """
        if self._is_ahead:
            raise UserError(
                "FrozenReference: with precompute it holds no model, and knows the rows of train and val alone"
            )
        if self.model is not None:
            yield self.model
            return
        with adapter_switched(policy, self.adapter):
            yield policy

    def token_log_probs(self, policy: nn.Module, batch: PairBatch) -> Tensor:
        """Return the log-probs of the scored tokens at the start, `(scored tokens,)`."""
        if self._is_ahead and batch.dummy:
            return torch.zeros(int(batch.lengths.sum()), device=batch.lengths.device)
        return super().token_log_probs(policy, batch)

    def rank_state(self) -> Any:
        """Return by what name the log-probs are found again."""
        return self._known or None

    def load_rank_state(self, states: list[Any], rank: int) -> None:
        """Take the names."""
        self._known = states[0] or {}

    def update(self, policy: nn.Module, alpha: Alpha) -> dict[str, float]:
        """Refuse.

        Raises:
            UserError: always.
        """
        raise UserError("FrozenReference does not move: take CopyReference or AdapterReference, or no reference update")


def _hash(*parts: Any) -> str:
    return blake2b(repr(parts).encode(), digest_size=16).hexdigest()
