"""Callbacks that let a reference follow a policy, in lit_tr's module or in any other."""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from operator import attrgetter
from typing import Any, Protocol, cast, runtime_checkable

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_tr.errors import DriftError, UserError
from lit_tr.reference.averaging import Alpha, blend, check_alpha, check_models, checksum, distance


@runtime_checkable
class MovingReference(Protocol):
    """A reference that knows how to follow a policy."""

    moves: bool
    hard_only: bool

    def update(self, policy: nn.Module, alpha: Alpha) -> dict[str, float]:
        """Move towards the policy by a share alpha; return figures for the log."""
        ...

    def distance(self, policy: nn.Module) -> float | None:
        """Return how far the policy's weights are; None if the reference holds none."""
        ...

    def tensors(self, policy: nn.Module) -> Iterable[Tensor]:
        """Return what an update changes."""
        ...


class ReferenceUpdate(Callback, ABC):
    """Moves the reference towards the policy after every n optimizer steps; subclasses say how far.

    Steps are optimizer steps, whatever the gradient accumulation; one that a gradient scaler skips is none. The update
    comes after the step and before a checkpoint of that step is saved. Each one goes to the loggers: alpha, what the
    reference tells of it, and at most once in `log_every_n_steps` steps what takes time: the distance of the weights
    before and after, a Euclidean norm (a soft update of all layers alike goes by their difference), and the jump of the
    mean reward margin on the last batch, by two forward passes of the reference.

    Args:
        every_n_steps: the paper's tau (arXiv 2404.09656), at least 1.
        start_step: the first optimizer steps, as many, go by without an update.
        layers: factors on alpha by regular expression, for the parameters whose name the expression is found in; the
            first one that is found counts, and 0 leaves a parameter as it is. Layers that move at rates of their own
            are those of adaptive model averaging.
        compare_every: at every n-th update the ranks compare a checksum of the trained weights and the reference, and
            stop if they have drifted apart; 0 never. Ranks that hold shards of the weights do not compare.
        policy: path of the attribute of the LightningModule that is trained.
        reference: path of the attribute that follows: a lit_tr reference, or any module with the policy's parameter
            names. The bfloat16 weights of the latter are averaged as float32 would; the halves that this takes are in
            the callback's state.

    Attributes:
        hard: the reference becomes the policy at each update.
        foreseen: `next_update` tells for sure when the next one comes.
    """

    hard = False
    foreseen = True

    def __init__(
        self,
        every_n_steps: int = 1,
        start_step: int = 0,
        layers: dict[str, float] | None = None,
        compare_every: int = 1,
        policy: str = "policy",
        reference: str = "reference",
    ) -> None:
        name = type(self).__name__
        if every_n_steps < 1:
            raise UserError(f"{name}: every_n_steps must be at least 1, not {every_n_steps}")
        if start_step < 0:
            raise UserError(f"{name}: start_step must not be negative, and is {start_step}")
        if compare_every < 0:
            raise UserError(f"{name}: compare_every must not be negative, and is {compare_every}")
        self.every_n_steps, self.start_step, self.layers = every_n_steps, start_step, dict(layers or {})
        self.compare_every = compare_every
        for pattern, factor in self.layers.items():
            if factor < 0:
                raise UserError(f"{name}: the factor of layers {pattern!r} must not be negative, and is {factor}")
        self.policy, self.reference = policy, reference
        self.updates = 0
        self._skipped_steps = 0
        self._seen_step = 0
        self._loss_scale = 0.0
        self._measured_at = -math.inf
        self._lower: dict[str, Tensor] = {}

    @property
    def state_key(self) -> str:
        """Name of the counters in a checkpoint; one for each pair of modules."""
        return self._generate_state_key(policy=self.policy, reference=self.reference)

    @abstractmethod
    def alpha_at(self, step: int) -> float:
        """Return the weight of the policy, in (0, 1], in the update after optimizer step `step` (the first is 1)."""

    def is_due(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> bool:
        """Return whether to update, asked after every n optimizer steps; equal on all ranks."""
        return True

    def next_update(self, step: int) -> int:
        """Return the first optimizer step behind `step` that an update follows."""
        return (max(step, self.start_step) // self.every_n_steps + 1) * self.every_n_steps

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
        elif reference.hard_only and (self.layers or not self.hard):
            raise UserError(
                f"{type(reference).__name__}, as it is configured, takes hard updates of all layers alone: take "
                "HardReferenceUpdate without layers, or another reference"
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
        elif before + taken >= self.next_update(before) and self.is_due(trainer, pl_module, batch):
            self._update(trainer, pl_module, batch, before + taken)
        pl_module.log(f"{self.reference}/updates", float(self.updates))

    def state_dict(self) -> dict[str, Any]:
        """Return the counters, and the lower halves of averaged bfloat16 weights of a foreign reference."""
        return {"updates": self.updates, "skipped_steps": self._skipped_steps, "lower": self._lower}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counters and halves."""
        self.updates, self._skipped_steps = state_dict["updates"], state_dict["skipped_steps"]
        self._lower = state_dict["lower"]

    def _modules(self, pl_module: LightningModule) -> tuple[Any, Any]:
        return self._module(pl_module, "policy"), self._module(pl_module, "reference")

    def _module(self, pl_module: LightningModule, role: str) -> Any:
        path, kind = getattr(self, role), type(pl_module).__name__
        try:
            found = attrgetter(path)(pl_module)
        except AttributeError as error:
            raise UserError(f"{type(self).__name__}: {role}={path!r}, but {kind} has no such attribute") from error
        if not isinstance(found, nn.Module | MovingReference):
            raise UserError(f"{type(self).__name__}: {role}={path!r}, but that attribute of {kind} is no torch module")
        return found

    def _update(self, trainer: Trainer, pl_module: LightningModule, batch: Any, step: int) -> None:
        policy, reference = self._modules(pl_module)
        alpha = self.alpha_at(step)
        weights = self._by_layer(alpha) if self.layers else alpha
        before = self._measured(trainer, pl_module, batch)
        if isinstance(reference, MovingReference):
            figures = reference.update(policy, weights)
        else:
            device = next(reference.parameters()).device
            self._lower = {name: halves.to(device) for name, halves in self._lower.items()}
            figures = {}
            blend(policy, reference, weights, self._lower)
        self.updates += 1
        if self.compare_every and self.updates % self.compare_every == 0 and trainer.world_size > 1:
            self._compare_ranks(trainer, policy, reference, step)
        figures = {"alpha": alpha, **figures, **self._compared(before, pl_module, batch)}
        for logger in pl_module.loggers:
            logger.log_metrics({f"{self.reference}/{name}": value for name, value in figures.items()}, step=step)

    def _compare_ranks(self, trainer: Trainer, policy: nn.Module, reference: nn.Module, step: int) -> None:
        trained = [param for param in policy.parameters() if param.requires_grad]
        if any(isinstance(param, DTensor) for param in trained):
            return
        follows = reference.tensors(policy) if isinstance(reference, MovingReference) else reference.parameters()
        own = torch.stack([checksum(trained), checksum(follows).to(trained[0].device)])
        sums = cast(Tensor, trainer.strategy.all_gather(own))
        for held, of_ranks in zip((self.policy, self.reference), sums.unbind(-1), strict=True):
            others = (of_ranks != of_ranks[0]).nonzero().flatten().tolist()
            if others:
                raise DriftError(
                    f"the ranks have drifted apart: after step {step} the weights of {held!r} on rank {others[0]} are "
                    "not those on rank 0. Something draws random numbers, reads data or skips steps on one rank alone; "
                    "go on from a checkpoint of before"
                )

    def _by_layer(self, alpha: float) -> Alpha:
        def weight(name: str) -> float:
            factors = (factor for pattern, factor in self.layers.items() if re.search(pattern, name))
            return min(alpha * next(factors, 1.0), 1.0)

        return weight

    def _measured(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> dict[str, float] | None:
        """Return what takes time to measure, if it is due."""
        due = trainer.global_step - self._measured_at >= trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not (due and pl_module.loggers):
            return None
        self._measured_at = trainer.global_step
        return self._measure(pl_module, batch)

    def _measure(self, pl_module: LightningModule, batch: Any) -> dict[str, float]:
        policy, reference = self._modules(pl_module)
        moving = isinstance(reference, MovingReference)
        far = cast(Any, reference).distance(policy) if moving else distance(policy, reference)
        figures = {} if far is None else {"distance": far}
        if hasattr(pl_module, "reward_margin"):
            figures["margin"] = cast(Any, pl_module).reward_margin(batch)
        return figures

    def _compared(self, before: dict[str, float] | None, pl_module: LightningModule, batch: Any) -> dict[str, float]:
        if before is None:
            return {}
        after = self._measure(pl_module, batch)
        figures = {
            f"distance_{when}": at["distance"]
            for when, at in (("before", before), ("after", after))
            if "distance" in at
        }
        if "margin" in before:
            figures["margin_jump"] = after["margin"] - before["margin"]
        return figures

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
        **options: as for `ReferenceUpdate`.
    """

    def __init__(self, alpha: float = 0.6, every_n_steps: int = 1, **options: Any) -> None:
        super().__init__(every_n_steps, **options)
        self.alpha = check_alpha(alpha)

    def alpha_at(self, step: int) -> float:
        """Return alpha."""
        return self.alpha


class CosineReferenceUpdate(SoftReferenceUpdate):
    """Soft updates whose alpha goes along half a cosine from one value to another.

    Args:
        alpha: weight of the policy at the first step, in (0, 1].
        last_alpha: weight at step `steps` and after, in (0, 1].
        steps: optimizer steps from the one to the other.
        every_n_steps: optimizer steps between updates.
        **options: as for `ReferenceUpdate`.
    """

    def __init__(self, alpha: float, last_alpha: float, steps: int, every_n_steps: int = 1, **options: Any) -> None:
        super().__init__(alpha, every_n_steps, **options)
        if steps < 1:
            raise UserError(f"CosineReferenceUpdate: steps must be at least 1, not {steps}")
        self.last_alpha, self.steps = check_alpha(last_alpha), steps

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
    """A trust region by its radius: the reference moves when the policy has diverged from it by more than a bound.

    The divergence is asked of the LightningModule, `kl_to_reference(batch)`, on the last batch, and averaged over the
    ranks, so that all of them move at the same step.

    Args:
        max_kl: bound on the divergence, above 0; for `PreferenceModule` in nats a response token.
        alpha: weight of the policy in an update, in (0, 1]; 1 makes the policy the new centre of the region.
        every_n_steps: optimizer steps between measurements, each of which costs a forward pass of both policies.
        **options: as for `ReferenceUpdate`.
    """

    foreseen = False

    def __init__(self, max_kl: float, alpha: float = 1.0, every_n_steps: int = 8, **options: Any) -> None:
        super().__init__(alpha, every_n_steps, **options)
        if not max_kl > 0:
            raise UserError(f"AdaptiveReferenceUpdate: max_kl must be above 0, not {max_kl}")
        self.max_kl, self.hard = max_kl, alpha == 1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find both modules.

        Raises:
            UserError: one of them is not there, or the LightningModule measures no divergence.
        """
        super().on_fit_start(trainer, pl_module)
        if not hasattr(pl_module, "kl_to_reference"):
            raise UserError(f"AdaptiveReferenceUpdate: {type(pl_module).__name__} has no method kl_to_reference(batch)")

    def is_due(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> bool:
        """Return whether the divergence passes the bound."""
        measured = torch.as_tensor(cast(Any, pl_module).kl_to_reference(batch), device=pl_module.device)
        kl = trainer.strategy.reduce(measured, reduce_op="mean").item()
        pl_module.log(f"{self.reference}/kl", kl)
        return kl > self.max_kl
