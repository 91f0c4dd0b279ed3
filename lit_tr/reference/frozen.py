"""FrozenReference: the policy as it was at the start."""

from contextlib import AbstractContextManager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from lit_tr.data.batches import PairBatch
from lit_tr.errors import UserError
from lit_tr.policy.adapters import add_adapter_copy, has_adapter, is_base
from lit_tr.policy.sharding import of_first, of_ranks
from lit_tr.reference import ahead
from lit_tr.reference.averaging import Alpha, checksum
from lit_tr.reference.base import Reference, frozen_copy


class FrozenReference(Reference):
    """The policy as it was at the start, for plain DPO, IPO and KTO.

    With a new adapter it costs nothing: it is the base, with the adapter switched off. For a policy that starts from a
    trained adapter it is a frozen copy of that adapter, and for a full model a second model. It is not saved, but made
    again from the policy's source.

    Args:
        precompute: train a full model without a second model: the policy scores all training and validation rows once
            before the first step. KTO's KL rows are then those of the set, each prompt with the responses of the row
            before it, and not those of each batch.
        folder: where the log-probs are saved, named by a hash of model and rows; None takes `reference_log_probs` in
            `trainer.default_root_dir`.
    """

    moves, is_start = False, True

    def __init__(self, precompute: bool = False, folder: str | None = None) -> None:
        self.precompute, self.folder, self.log_probs_only = precompute, folder, precompute
        self._precomputes = False
        self._known: dict[str, str] = {}

    def setup(self, trainer: Any, module: Any) -> None:
        """Check that the rows to precompute are loaded before training."""
        self._precomputes = self.precompute and trainer.state.fn == TrainerFn.FITTING
        if self._precomputes and "train" not in getattr(trainer.datamodule, "examples", {}):
            raise UserError(
                "FrozenReference: precompute scores the rows of a PreferenceDataModule before training, and there are "
                "none: leave data.buffer out, or precompute"
            )

    def prepare(self, policy: nn.Module) -> None:
        """Become a copy of the policy; `precompute` is for one without an adapter."""
        if self._precomputes and has_adapter(policy):
            raise UserError(
                "FrozenReference: precompute saves a second model, and with an adapter there is none: leave it out"
            )
        if not has_adapter(policy):
            self.model = None if self._precomputes else frozen_copy(policy)
        elif not of_first(lambda: is_base(policy)):
            self.adapter = "initial"
            add_adapter_copy(policy, self.adapter)

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        """Precompute the log-probs of all rows, or load them; a resumed run needs the same rows and the files."""
        if not self._precomputes:
            return
        folder = Path(self.folder or Path(trainer.default_root_dir) / "reference_log_probs")
        known = self._known.copy()  # of a resumed run, whose policy has moved
        model = "" if known else of_ranks(checksum(module.policy.state_dict().values()).item())
        for name in ("train", "val"):
            if name not in trainer.datamodule.examples:
                continue
            rows = ahead.Rows(trainer.datamodule, name)
            of = repr((rows.digest(), model, trainer.precision)).encode()
            key = known.get(name) or blake2b(of, digest_size=16).hexdigest()
            path = folder / f"{key}.safetensors"
            exists = all(of_ranks(path.exists()))
            if known and not exists:
                raise UserError(f"{path}: the initial policy's log-probs are gone: put the file there, or start over")
            scored = ahead.load(path, rows) if exists else ahead.score(rows, module)
            if trainer.is_global_zero and not exists:
                ahead.save(path, rows, scored)
            rows.attach(scored)
            self._known[name] = key

    def active(self, policy: nn.Module) -> AbstractContextManager[nn.Module]:
        """Return a context whose value is the initial policy.

        Raises:
            UserError: it holds no model.
        """
        if self._precomputes:
            raise UserError(
                "FrozenReference: with precompute it holds no model, and knows only the rows of train and val"
            )
        return super().active(policy)

    def token_log_probs(self, policy: nn.Module, batch: PairBatch) -> Tensor:
        """Return the initial policy's log-probs of the scored tokens, `(scored tokens,)`."""
        if self._precomputes and batch.dummy:
            return torch.zeros(sum(batch.sizes), device=batch.lengths.device)
        return super().token_log_probs(policy, batch)

    def rank_state(self) -> Any:
        """Return the names of the files of log-probs."""
        return self._known or None

    def load_rank_state(self, states: list[Any], rank: int) -> None:
        """Load the names of the files."""
        self._known = states[0] or {}

    def update(self, policy: nn.Module, alpha: Alpha) -> dict[str, float]:
        """Raise a `UserError`: it does not move."""
        raise UserError("FrozenReference does not move: take CopyReference or AdapterReference, or no reference update")
