"""WindowReference: hard updates of full fine-tuning without a second model."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from lit_tr.data.batches import PairBatch, known_log_probs
from lit_tr.errors import UserError
from lit_tr.kept import KeptLoader
from lit_tr.loading import Drawn, draw_from
from lit_tr.policy.adapters import has_adapter
from lit_tr.reference.averaging import Alpha
from lit_tr.reference.base import Reference, updates_of


class WindowReference(Reference):
    """The policy at the last hard update, without its weights: its log-probs of the batches up to the next update.

    At a hard update (arXiv 2404.09656, Eq. 6) the policy is the reference. Before it moves on, it scores the batches of
    all optimizer steps up to the next update, and the validation batches if there are any; only the log-probs are kept.
    So the batches of a window are drawn as one chunk, and the validation batches stay in memory.

    It works with one `HardReferenceUpdate`, whose next update is known. A run that ends between two updates has scored
    all batches up to the next one. Between two updates no other batches (`test`, `predict`) can be scored.
    """

    hard_only = True
    log_probs_only = True
    log_initial = False

    def __init__(self) -> None:
        self._callback: Any = None
        self._drawn: Drawn | None = None
        self._validation: KeptLoader | None = None
        self._saved: list[Any] = []
        self._rank = 0
        self._is_policy = True

    def setup(self, trainer: Any, module: Any) -> None:
        """Find the callback that moves it, and keep the validation batches."""
        if trainer.state.fn == TrainerFn.FITTING:
            self._callback = hard_update(trainer)
            draw_from(trainer.fit_loop.epoch_loop.val_loop, KeptLoader)

    def prepare(self, policy: nn.Module) -> None:
        """Check that the policy trains no adapter."""
        self.check_policy(has_adapter(policy))

    def check_policy(self, has_adapter: bool) -> None:
        """Raise a `UserError` if there is an adapter."""
        if has_adapter:
            raise UserError(
                "WindowReference saves a second model, and with an adapter there is none: take AdapterReference, whose "
                "second adapter costs next to nothing"
            )

    def steps_ahead(self, step: int) -> int:
        """Return the number of optimizer steps up to the next update."""
        return self._callback.next_update(step) - step

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """Find the validation batches; after a resume within a window, which must be the same one, with log-probs."""
        self._validation = _validation_loader(trainer)
        if self._saved:
            self._check_window(trainer)
            if self._validation:
                self._validation.log_probs = _matched(self._validation.batches, self._saved[self._rank]["validation"])

    def on_train_batch_start(self, module: Any, batch: PairBatch) -> None:
        """Put the reference log-probs on a batch; before the first one of a window, score all batches of it."""
        drawn = batch.drawn
        if drawn.log_probs is None and self._saved:
            drawn.log_probs = _matched(drawn.batches, self._saved[self._rank]["train"])
        elif drawn.log_probs is None:
            drawn.log_probs = [self._score(module, one) for one in drawn.batches]
            if self._validation:
                self._validation.log_probs = [self._score(module, one) for one in self._validation.batches]
        self._drawn, self._saved, self._is_policy = drawn, [], False
        batch.known = known_log_probs(drawn.log_probs[batch.index]).to(batch.lengths.device)

    def active(self, policy: nn.Module) -> AbstractContextManager[nn.Module]:
        """Return a context whose value is the policy, while it is the reference.

        Raises:
            UserError: the policy has moved on.
        """
        if not self._is_policy:
            raise UserError(
                "WindowReference holds no weights: between two updates it knows only the batches that it has scored. "
                "To test or predict, take a checkpoint of a step that is a multiple of every_n_steps: there the policy "
                "is the reference"
            )
        return nullcontext(policy)

    def update(self, policy: nn.Module, alpha: Alpha) -> dict[str, float]:
        """Become the policy, and drop the log-probs; alpha must be 1."""
        if alpha != 1:
            raise UserError("WindowReference takes only hard updates of all layers: take CopyReference")
        if self._validation:
            self._validation.log_probs = None
        self._is_policy, self._drawn, self._saved = True, None, []
        return {}

    def rank_state(self) -> Any:
        """Return the log-probs of the window's batches, and their lengths to identify them; None at an update."""
        if self._drawn is None or self._drawn.log_probs is None:
            return self._saved[self._rank] if self._saved else None
        train = _with_lengths(self._drawn.batches, self._drawn.log_probs)
        kept = self._validation
        validation = _with_lengths(kept.batches, kept.log_probs) if kept and kept.log_probs else []
        step = self._drawn.start["step"]
        return {"train": train, "validation": validation, "until": step + len(self._drawn.step_ends)}

    def load_rank_state(self, states: list[Any], rank: int) -> None:
        """Load the windows of all ranks."""
        self._saved = states if any(states) else []
        self._rank, self._is_policy = min(rank, len(states) - 1), not any(states)

    def _score(self, module: Any, batch: PairBatch) -> Tensor:
        return self.token_log_probs(module.policy, module.placed(batch.copied())).cpu()

    def _check_window(self, trainer: Any) -> None:
        if len(self._saved) != trainer.world_size:
            raise UserError(
                f"the checkpoint's window was scored on {len(self._saved)} ranks, and now there are "
                f"{trainer.world_size}: go on with as many, or from a checkpoint of a step with an update"
            )
        until, follows = self._saved[self._rank]["until"], self._callback.next_update(trainer.global_step)
        if until != follows:
            raise UserError(
                f"WindowReference has scored the batches up to step {until}, and the next update follows step "
                f"{follows}: go on with the same every_n_steps, or from a checkpoint of a step with an update"
            )


def hard_update(trainer: Any) -> Any:
    """Return the one callback that moves the reference by hard updates at certain steps, or raise a `UserError`."""
    updates = updates_of(trainer)
    if len(updates) != 1 or not (updates[0].hard and updates[0].scheduled):
        given = " and ".join(type(one).__name__ for one in updates) or "no update of the reference"
        raise UserError(f"WindowReference goes with one HardReferenceUpdate, not with {given}: else take CopyReference")
    for obstacle, present in {
        "16-mixed precision, which skips steps: take bf16-mixed": getattr(trainer.precision_plugin, "scaler", None),
        "reload_dataloaders_every_n_epochs": trainer.reload_dataloaders_every_n_epochs,
        "GradientAccumulationScheduler": any(isinstance(c, GradientAccumulationScheduler) for c in trainer.callbacks),
    }.items():
        if present:
            raise UserError(
                f"WindowReference draws the batches up to the next update, so it does not go with {obstacle}"
            )
    return updates[0]


def _validation_loader(trainer: Any) -> KeptLoader | None:
    """Return the loader of validation, if there is any."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    if not trainer.enable_validation:
        return None
    loop.setup_data()
    if loop._combined_loader is not None:
        loop._combined_loader.limits = loop.max_batches
    return loop._combined_loader


def _with_lengths(batches: list[PairBatch], log_probs: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    return [(batch.lengths.cpu(), one) for batch, one in zip(batches, log_probs, strict=True)]


def _matched(batches: list[PairBatch], saved: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    same = (torch.equal(batch.lengths, lengths) for batch, (lengths, _) in zip(batches, saved, strict=False))
    if len(batches) != len(saved) or not all(same):
        raise UserError(
            "WindowReference: these batches are not those that were scored before the checkpoint, and the weights that "
            "scored them are gone: go on with the same rows and batches, or from a checkpoint of a step with an update"
        )
    return [log_probs for _, log_probs in saved]
