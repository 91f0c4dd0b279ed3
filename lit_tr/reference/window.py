"""WindowReference: hard updates of full fine-tuning without a second model."""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from hashlib import blake2b
from typing import Any

import torch
from torch import Tensor, distributed, nn

from lit_tr.data.batches import PairBatch
from lit_tr.errors import UserError
from lit_tr.policy.adapters import has_adapter
from lit_tr.reference.averaging import Alpha
from lit_tr.reference.base import Reference


class WindowReference(Reference):
    """The policy as it was at the last hard update, without its weights: what it said of the batches that come.

    At a hard update (arXiv 2404.09656, Eq. 6) the policy is the reference. Before it moves on, it scores the batches of
    all steps up to the next update; those log-probs are kept, and no weights. They are found by what is in a batch, so
    that a batch never gets the log-probs of another one, in whatever order batches come.

    `PreferenceModule` sees to the scoring, which is due before the first batch behind an update. It goes with
    `HardReferenceUpdate` alone, whose next update is known. Where validation comes between two updates its batches are
    scored too, at the cost of a forward pass over them for each such window. A run that ends between two updates has
    scored up to the next one. Inside a window, other batches (`test`, `predict`) cannot be scored.

    Attributes:
        live: the policy has not moved since the update, and is the reference itself.
        until: optimizer step of the next update, up to which the batches are scored.
        scored: log-probs of the responses of each scored batch, `(responses,)`, by the batch's fingerprint.
    """

    hard_only = True

    def __init__(self) -> None:
        super().__init__()
        self.scored: dict[str, Tensor]
        self._restart()

    def prepare(self, policy: nn.Module) -> None:
        """Become the policy as it is now.

        Raises:
            UserError: the policy trains an adapter.
        """
        if has_adapter(policy):
            raise UserError(
                "WindowReference saves a second model, and with an adapter there is none: take AdapterReference, whose "
                "second adapter costs next to nothing"
            )
        self._restart()

    def active(self, policy: nn.Module) -> AbstractContextManager[nn.Module]:
        """Return a context whose value is the policy, while it is the reference.

        Raises:
            UserError: it has moved on.
        """
        if not self.live:
            raise UserError(
                "WindowReference holds no weights: inside a window it knows only the batches that it scored"
            )
        return nullcontext(policy)

    def update(self, policy: nn.Module, alpha: Alpha) -> dict[str, float]:
        """Become the policy: what was scored is forgotten.

        Raises:
            UserError: alpha is not 1.
        """
        if alpha != 1:
            raise UserError("WindowReference takes hard updates of all layers alone: take CopyReference")
        self._restart()
        return {}

    def score(self, policy: nn.Module, batches: Iterable[PairBatch], until: int) -> None:
        """Score the batches that come before the update after step `until`; from here on the policy may move.

        Raises:
            UserError: the policy has moved already.
        """
        scored = {}
        # who starts the workers of a data loader draws a random number
        with torch.random.fork_rng(devices=[]):
            for batch in batches:
                scored[fingerprint(batch)] = super().log_probs(policy, batch).cpu()
        self.scored, self.until, self.live = scored, until, False

    def log_probs(self, policy: nn.Module, batch: PairBatch) -> Tensor:
        """Return the log-probs of the responses under the reference, `(responses,)`.

        Raises:
            UserError: the policy has moved on, and this batch was not scored before.
        """
        if self.live:
            return super().log_probs(policy, batch)
        found = self.scored.get(fingerprint(batch))
        if found is None:
            raise UserError(
                "WindowReference: a batch comes that was not scored at the last update, and the weights of then are "
                "gone. Training batches must come as the loader's state tells, those of validation the same each time, "
                "when the trainer's interval in batches tells. To test or predict, or to resume with other batches, "
                "take a checkpoint of a step that is a multiple of every_n_steps: there the policy is the reference"
            )
        return found.to(batch.lengths.device)

    def windows(self) -> list[dict[str, Any]]:
        """Return what a checkpoint holds of the windows of all ranks; to be called on all of them."""
        own = {"live": self.live, "until": self.until, "scored": self.scored}
        if not distributed.is_initialized():
            return [own]
        gathered: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(gathered, own)
        return gathered

    def load_windows(self, windows: list[dict[str, Any]]) -> None:
        """Restore this rank's window.

        Raises:
            UserError: the windows are those of another number of ranks.
        """
        rank, ranks = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
        if len(windows) != ranks and not windows[0]["live"]:
            raise UserError(f"the checkpoint's window was scored on {len(windows)} ranks, and now there are {ranks}")
        own = windows[rank % len(windows)]
        self.live, self.until, self.scored = own["live"], own["until"], own["scored"]

    def _restart(self) -> None:
        self.live, self.until, self.scored = True, 0, {}


def fingerprint(batch: PairBatch) -> str:
    """Return a hash of the tensors of a batch: equal for batches of the same responses to the same prompts."""
    whole = blake2b(digest_size=16)
    for name, value in vars(batch).items():
        if isinstance(value, Tensor):
            whole.update(f"{name} {tuple(value.shape)}".encode())
            whole.update(value.cpu().numpy().tobytes())
    return whole.hexdigest()
