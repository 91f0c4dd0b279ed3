"""Updates of a reference: soft, hard, along a cosine, and when the policy has gone too far."""

import math
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from lit_tr.errors import UserError
from lit_tr.reference.averaging import check_alpha
from lit_tr.updates.base import ReferenceUpdate


class SoftReferenceUpdate(ReferenceUpdate):
    """Soft update: `reference <- alpha * policy + (1 - alpha) * reference`, every n optimizer steps.

    Eq. 5 of the TR-DPO paper (arXiv 2404.09656).

    Args:
        alpha: weight of the policy, in (0, 1]; the paper's best is 0.6.
        every_n_steps: optimizer steps between updates.
        **options: as for `ReferenceUpdate`.
    """

    def __init__(self, alpha: float = 0.6, every_n_steps: int = 1, **options: Any) -> None:
        super().__init__(every_n_steps, **options)
        self.alpha = check_alpha(alpha)

    def alpha_at(self, step: int) -> float:
        """Return alpha."""
        return self.alpha


class CosineReferenceUpdate(ReferenceUpdate):
    """Soft updates whose alpha follows half a cosine from one value to another.

    From 0.004 to 0 it is the schedule of BYOL (arXiv 2006.07733), MoCo v3 and DINO, whose tau or m is 1 - alpha.

    Args:
        alpha: weight of the policy at the first step, in [0, 1].
        last_alpha: weight at step `steps` and after, in [0, 1]; not both may be 0.
        steps: optimizer steps from one to the other.
        every_n_steps: optimizer steps between updates.
        **options: as for `ReferenceUpdate`.
    """

    def __init__(self, alpha: float, last_alpha: float, steps: int, every_n_steps: int = 1, **options: Any) -> None:
        super().__init__(every_n_steps, **options)
        if steps < 1:
            raise UserError(f"CosineReferenceUpdate: steps must be at least 1, not {steps}")
        self.alpha, self.last_alpha = (check_alpha(value, zero=True) for value in (alpha, last_alpha))
        self.steps = steps
        check_alpha(max(alpha, last_alpha))

    def alpha_at(self, step: int) -> float:
        """Return `last_alpha + (alpha - last_alpha) * (1 + cos(pi * step / steps)) / 2`."""
        share = (1 + math.cos(math.pi * min(step / self.steps, 1))) / 2
        return self.last_alpha + (self.alpha - self.last_alpha) * share


class HardReferenceUpdate(ReferenceUpdate):
    """Hard update: `reference <- policy`, every n optimizer steps.

    Eq. 6 of the TR-DPO paper (arXiv 2404.09656).

    Args:
        every_n_steps: optimizer steps between updates; the paper's best is 512.
        **options: as for `ReferenceUpdate`.
    """

    hard = True

    def __init__(self, every_n_steps: int = 512, **options: Any) -> None:
        super().__init__(every_n_steps, **options)

    def alpha_at(self, step: int) -> float:
        """Return 1."""
        return 1.0


class AdaptiveReferenceUpdate(SoftReferenceUpdate):
    """A trust region of a given radius: the reference moves when the policy's KL divergence from it exceeds a bound.

    The divergence is the LightningModule's `kl_to_reference(batch)` on the last batch, averaged over the ranks, so that
    all of them update at the same step. Each measurement waits for the device, at steps that are not logged too, for
    the host must know whether to update.

    Args:
        max_kl: bound on the divergence, above 0; for `PreferenceModule` in nats per response token.
        alpha: weight of the policy in an update, in (0, 1]; 1 makes the policy the new centre of the region.
        every_n_steps: optimizer steps between measurements, each of which costs a forward pass of both models.
        **options: as for `ReferenceUpdate`.
    """

    scheduled = False

    def __init__(self, max_kl: float, alpha: float = 1.0, every_n_steps: int = 8, **options: Any) -> None:
        super().__init__(alpha, every_n_steps, **options)
        if not max_kl > 0:
            raise UserError(f"AdaptiveReferenceUpdate: max_kl must be above 0, not {max_kl}")
        self.max_kl, self.hard = max_kl, alpha == 1 and not self.layers

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset for a new run, and check that the LightningModule measures a divergence."""
        super().setup(trainer, pl_module, stage)
        if stage == TrainerFn.FITTING and not hasattr(pl_module, "kl_to_reference"):
            raise UserError(f"AdaptiveReferenceUpdate: {type(pl_module).__name__} has no method kl_to_reference(batch)")

    def is_due(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> bool:
        """Return whether the divergence exceeds the bound."""
        measured = torch.as_tensor(cast(Any, pl_module).kl_to_reference(batch), device=pl_module.device)
        kl = cast(Tensor, trainer.strategy.reduce(measured, reduce_op="mean"))
        pl_module.log(f"{self.reference}/kl", kl)
        return kl.item() > self.max_kl
