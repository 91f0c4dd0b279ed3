"""Callbacks that let a reference follow a policy, in lit_tr's module or in any other."""

from operator import attrgetter
from typing import Any, Protocol, runtime_checkable

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from lit_tr.errors import UserError
from lit_tr.policy.averaging import blend, check_alpha, check_models


@runtime_checkable
class MovingReference(Protocol):
    """A reference that knows how to follow a policy."""

    moves: bool

    def update(self, policy: nn.Module, alpha: float) -> None:
        """Move towards the policy by a share alpha."""


class ReferenceUpdate(Callback):
    """Moves the reference towards the policy after every n optimizer steps; subclasses say how far.

    Steps are optimizer steps, whatever the gradient accumulation; one that a gradient scaler skips is none. The update
    comes after the step and before a checkpoint of that step is saved.

    Args:
        every_n_steps: the paper's tau (arXiv 2404.09656), at least 1.
        policy: path of the attribute of the LightningModule that is trained.
        reference: path of the attribute that follows: a lit_tr reference, or any module with the policy's parameter
            names.

    Attributes:
        hard: the reference becomes the policy at each update.
    """

    hard = False

    def __init__(self, every_n_steps: int = 1, policy: str = "policy", reference: str = "reference") -> None:
        if every_n_steps < 1:
            raise UserError(f"{type(self).__name__}: every_n_steps must be at least 1, not {every_n_steps}")
        self.every_n_steps, self.policy, self.reference = every_n_steps, policy, reference
        self.updates = 0
        self._skipped_steps = 0
        self._seen_step = 0
        self._loss_scale = 0.0

    @property
    def state_key(self) -> str:
        """Name of the counters in a checkpoint; one for each pair of modules."""
        return self._generate_state_key(policy=self.policy, reference=self.reference)

    def alpha_at(self, step: int) -> float:
        """Return the weight of the policy, in (0, 1], in the update after optimizer step `step` (the first is 1)."""
        raise NotImplementedError

    def next_update(self, step: int) -> int:
        """Return the first optimizer step behind `step` that an update follows."""
        return (step // self.every_n_steps + 1) * self.every_n_steps

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find both modules.

        Raises:
            UserError: one of them is not there, or the reference cannot follow the policy.
        """
        policy, reference = self._modules(pl_module)
        if not isinstance(reference, MovingReference):
            check_models(policy, reference)
        elif not reference.moves:
            raise UserError(
                f"{type(reference).__name__} does not move: leave {type(self).__name__} out, or take another one"
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count where the trainer is, after a resume too."""
        self._seen_step = trainer.global_step
        self._was_skipped(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update where the number of optimizer steps has reached a multiple of n."""
        taken = trainer.global_step - self._seen_step
        if taken == 0:
            return
        before = self._seen_step - self._skipped_steps
        self._seen_step = trainer.global_step
        if self._was_skipped(trainer):
            self._skipped_steps += taken
        elif before + taken >= self.next_update(before):
            self._update(*self._modules(pl_module), self.alpha_at(before + taken))
        pl_module.log(f"{self.reference}/updates", float(self.updates))

    def state_dict(self) -> dict[str, Any]:
        """Return the counters."""
        return {"updates": self.updates, "skipped_steps": self._skipped_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counters."""
        self.updates, self._skipped_steps = state_dict["updates"], state_dict["skipped_steps"]

    def _modules(self, pl_module: LightningModule) -> tuple[nn.Module, nn.Module]:
        return self._module(pl_module, "policy"), self._module(pl_module, "reference")

    def _module(self, pl_module: LightningModule, role: str) -> nn.Module:
        path, kind = getattr(self, role), type(pl_module).__name__
        try:
            found = attrgetter(path)(pl_module)
        except AttributeError as error:
            raise UserError(f"{type(self).__name__}: {role}={path!r}, but {kind} has no such attribute") from error
        if not isinstance(found, nn.Module):
            raise UserError(f"{type(self).__name__}: {role}={path!r}, but that attribute of {kind} is no torch module")
        return found

    def _update(self, policy: nn.Module, reference: nn.Module, alpha: float) -> None:
        if isinstance(reference, MovingReference):
            reference.update(policy, alpha)
        else:
            blend(policy, reference, alpha)
        self.updates += 1

    def _was_skipped(self, trainer: Trainer) -> bool:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is None:
            return False
        before, self._loss_scale = self._loss_scale, scaler.get_scale()
        return self._loss_scale < before  # a scaler lowers its scale when it has found an overflow


class SoftReferenceUpdate(ReferenceUpdate):
    """Soft update: `reference <- alpha * policy + (1 - alpha) * reference`, every n optimizer steps.

    Eq. 5 of the TR-DPO paper (arXiv 2404.09656).

    Args:
        alpha: weight of the policy, in (0, 1]; the paper's best is 0.6.
        every_n_steps: optimizer steps between updates.
        policy: path of the attribute of the LightningModule that is trained.
        reference: path of the attribute that follows.
    """

    def __init__(
        self, alpha: float = 0.6, every_n_steps: int = 1, policy: str = "policy", reference: str = "reference"
    ) -> None:
        super().__init__(every_n_steps, policy, reference)
        self.alpha = check_alpha(alpha)

    def alpha_at(self, step: int) -> float:
        """Return alpha."""
        return self.alpha


class HardReferenceUpdate(ReferenceUpdate):
    """Hard update: `reference <- policy`, every n optimizer steps.

    Eq. 6 of the TR-DPO paper (arXiv 2404.09656).

    Args:
        every_n_steps: optimizer steps between updates; the paper's best is 512.
        policy: path of the attribute of the LightningModule that is trained.
        reference: path of the attribute that follows.
    """

    hard = True

    def __init__(self, every_n_steps: int = 512, policy: str = "policy", reference: str = "reference") -> None:
        super().__init__(every_n_steps, policy, reference)

    def alpha_at(self, step: int) -> float:
        """Return 1."""
        return 1.0
