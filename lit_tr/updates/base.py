"""What all updates of a reference share: when they come, what is checked and logged, and what is saved."""

import re
from abc import ABC, abstractmethod
from contextlib import suppress
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, cast, get_args

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_tr.errors import DriftError, UserError, explained
from lit_tr.reference.averaging import Alpha, Buffers, ModuleReference, check_models, checksum, parameters
from lit_tr.reference.precision import LowOrderBits


class ReferenceUpdate(Callback, ABC):
    """Moves the reference towards the policy every n optimizer steps; subclasses say how far.

    Steps are optimizer steps, whatever the gradient accumulation; one that a gradient scaler skips does not count. The
    update comes after the step and before a checkpoint of that step is saved. It logs, with the metrics of that step,
    alpha and the reference's own figures, and at the last update up to each logged step what costs more: the Euclidean
    distance of the weights before and after, and `margin_jump`, the change of the mean reward margin on the last batch,
    which takes two forward passes of the reference. Figures are read, and ranks compared, at logged steps alone and
    before anything is saved: no other step waits for the device.

    In your own LightningModule, `reference` may be any module with the policy's parameter names. Its half-precision
    weights are averaged as in float32, with low-order bits in the callback's state. Parameters are averaged one by one:
    for a PEFT model the factors of its adapter and not their product, which is another average (see
    `AdapterReference`).

    Args:
        every_n_steps: the paper's tau (arXiv 2404.09656), at least 1.
        start_step: no update up to this optimizer step.
        layers: factors on alpha by regular expression, searched in the names of `policy.named_parameters()` whatever
            the reference; the first match counts, and 0 leaves a parameter unchanged.
        compare_every: at every n-th update the ranks compare checksums of the trained weights and the reference, and
            stop if they differ; 0 never. Sharded weights are not compared.
        policy: path of the LightningModule's attribute that is trained.
        reference: path of the attribute that follows it: a lit_tr reference or a module.
        buffers: what an update does to the buffers of a module, such as batch norm statistics: `copy` them from the
            policy, `average` the floating-point ones and copy the others, or `leave` them.

    Attributes:
        hard: each update copies the whole policy.
        scheduled: `next_update` is certain: no update depends on what is measured.
    """

    hard = False
    scheduled = True

    def __init__(
        self,
        every_n_steps: int = 1,
        start_step: int = 0,
        layers: dict[str, float] | None = None,
        compare_every: int = 1,
        policy: str = "policy",
        reference: str = "reference",
        buffers: Buffers = "copy",
    ) -> None:
        self.every_n_steps, self.start_step, self.layers = every_n_steps, start_step, dict(layers or {})
        self.compare_every, self.policy, self.reference, self.buffers = compare_every, policy, reference, buffers
        name = type(self).__name__
        for argument, least in {"every_n_steps": 1, "start_step": 0, "compare_every": 0}.items():
            if (value := getattr(self, argument)) < least:
                raise UserError(f"{name}: {argument} must be at least {least}, not {value}")
        if buffers not in get_args(Buffers):
            raise UserError(f"{name}: buffers must be copy, average or leave, not {buffers!r}")
        for pattern, factor in self.layers.items():
            if factor < 0:
                raise UserError(f"{name}: the factor of layers {pattern!r} must not be negative, and is {factor}")
        self.hard = self.hard and not self.layers
        self._reset()

    def _reset(self) -> None:
        self.updates = self._skipped_steps = self._seen_step = 0
        self._loss_scale = 0.0
        self._averaged, self._logged = LowOrderBits(), list[str]()
        self._unread, self._uncompared = list[tuple[dict[str, Any], int]](), list[tuple[int, Tensor]]()

    @property
    def state_key(self) -> str:
        """Key of the counters in a checkpoint, one per policy and reference."""
        named = {"policy": self.policy, "reference": self.reference}
        return f"{type(self).__qualname__}{named}"

    @abstractmethod
    def alpha_at(self, step: int) -> float:
        """Return the weight of the policy, in [0, 1], for the update after optimizer step `step` (from 1)."""

    def is_due(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> bool:
        """Return whether to update, every n optimizer steps; the same on all ranks."""
        return True

    def next_update(self, step: int) -> int:
        """Return the first optimizer step after `step` with an update."""
        return (max(step, self.start_step) // self.every_n_steps + 1) * self.every_n_steps

    def weights(self, alpha: float) -> Alpha:
        """Return alpha, or a function from a parameter's name in the policy to its alpha."""
        if not self.layers or alpha == 0:
            return alpha

        def weight(name: str) -> float:
            factors = (factor for pattern, factor in self.layers.items() if re.search(pattern, name))
            return min(alpha * next(factors, 1.0), 1.0)

        return weight

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Reset for a new run, and check the reference if it exists before weights are loaded."""
        if stage != TrainerFn.FITTING:
            return
        if trainer.global_step == 0:  # a checkpoint is restored later
            self._reset()
        with suppress(AttributeError):  # made in `configure_model`
            self._check(attrgetter(self.reference)(pl_module), pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that both models are there, one can follow the other, and all `layers` match a parameter."""
        policy, reference = self._modules(pl_module)
        self._check(reference, pl_module)
        if is_module := isinstance(reference, nn.Module):
            check_models(policy, reference)
        moved = [name for name, param in parameters(policy).items() if is_module or param.requires_grad]
        for pattern in self.layers:
            if not any(re.search(pattern, name) for name in moved):
                raise UserError(
                    f"{type(self).__name__}: layers {pattern!r} is found in no name of a parameter of {self.policy!r} "
                    f"that the reference follows, such as {', '.join(moved[:1])}"
                )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from the trainer's step, after a resume too."""
        self._seen_step = trainer.global_step
        self._was_skipped(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Drop the last update's figures: Lightning would log them again with each later step."""
        for name in self._logged:
            trainer._results.pop(f"on_train_batch_end.{name}", None)  # type: ignore[union-attr]
        self._logged = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update if the number of optimizer steps has reached a multiple of n."""
        taken = trainer.global_step - self._seen_step
        if taken == 0:
            return
        before = self._seen_step - self._skipped_steps
        self._seen_step = trainer.global_step
        figures: dict[str, Any] = {}
        if self._was_skipped(trainer):
            self._skipped_steps += taken
        elif before + taken >= self.next_update(before) and self.is_due(trainer, pl_module, batch):
            figures = self._update(trainer, pl_module, batch, before + taken)
        self._log(trainer, pl_module, figures)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what is left before the figures of the validation."""
        self._settle(pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Log what a run that goes on from the checkpoint would not, and save nothing of ranks that have drifted."""
        self._settle(pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log what is left."""
        self._settle(pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Return the counters, and the low-order bits of a module's average."""
        counters = {"updates": self.updates, "skipped_steps": self._skipped_steps}
        return {**counters, "averaged": dict(vars(self._averaged.kept))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counters and the average."""
        self.updates, self._skipped_steps = state_dict["updates"], state_dict["skipped_steps"]
        self._averaged.kept = SimpleNamespace(**state_dict["averaged"])

    def _modules(self, pl_module: LightningModule) -> list[Any]:
        modules, own, kind = [], type(self).__name__, type(pl_module).__name__
        for role, path in (("policy", self.policy), ("reference", self.reference)):
            with explained(f"{own}: {role}={path!r}, but {kind} has no such attribute", AttributeError):
                modules.append(attrgetter(path)(pl_module))
        return modules

    def _check(self, reference: Any, pl_module: LightningModule) -> None:
        own, kind = type(self).__name__, type(reference).__name__
        where = f"{self.reference!r} of {type(pl_module).__name__}"
        if reference is None:
            raise UserError(f"{own}: {where} is None, as where a loss, such as SimPO, needs none: leave {own} out")
        if isinstance(reference, nn.Module):
            return
        if not hasattr(reference, "moves"):
            raise UserError(f"{own}: {where} is neither a torch module nor a reference of lit_tr")
        if not reference.moves:
            raise UserError(f"{kind} does not move: leave {own} out, or take another one")
        if reference.hard_only and not self.hard:
            raise UserError(
                f"{kind}, as it is configured, takes only hard updates of all layers: take HardReferenceUpdate without "
                "layers, or another reference"
            )
        if self.buffers != "copy":
            raise UserError(f"{own}: buffers is for a module that follows, and {where} is a {kind}: leave it out")

    def _update(self, trainer: Trainer, pl_module: LightningModule, batch: Any, step: int) -> dict[str, Any]:
        policy, reference = self._modules(pl_module)
        if isinstance(reference, nn.Module):
            reference = ModuleReference(reference, None if self.hard else self._averaged, self.buffers)
        alpha, measures = self.alpha_at(step), self._measures(trainer, step)
        before = self._measure(pl_module, policy, reference, batch) if measures else {}
        figures = {"alpha": alpha, **reference.update(policy, self.weights(alpha))}
        self.updates += 1
        if self.compare_every and self.updates % self.compare_every == 0 and trainer.world_size > 1:
            self._compare_ranks(trainer, policy, reference, step)
        after = self._measure(pl_module, policy, reference, batch) if measures else {}
        if "distance" in before:
            figures |= {"distance_before": before["distance"], "distance_after": after["distance"]}
        if "margin" in before:
            figures["margin_jump"] = after["margin"] - before["margin"]
        return figures

    def _log(self, trainer: Trainer, pl_module: LightningModule, figures: dict[str, Any]) -> None:
        """Log figures in the row of the step, or later in a row of their own if Lightning logs none."""
        named = {f"{self.reference}/{name}": value for name, value in figures.items()}
        if trainer._logger_connector.should_update_logs:
            self._settle(pl_module)
            pl_module.log_dict(named)
            self._logged = [*named]
        elif named:
            self._unread.append((named, trainer.fit_loop.epoch_loop._batches_that_stepped))
        # of a number in Python it would make a tensor on the device, and wait for that
        pl_module.log(f"{self.reference}/updates", torch.full((), float(self.updates), device=pl_module.device))

    def _settle(self, pl_module: LightningModule) -> None:
        """Compare the ranks, and log the figures, of the updates since the last logged step.

        Raises:
            DriftError: the ranks do not hold the same weights.
        """
        uncompared, self._uncompared = self._uncompared, []
        for step, sums in uncompared:
            self._check_ranks(step, sums)
        unread, self._unread = self._unread, []
        for named, step in unread:
            for logger in pl_module.loggers:
                logger.log_metrics({name: float(value) for name, value in named.items()}, step=step)

    def _compare_ranks(self, trainer: Trainer, policy: nn.Module, reference: Any, step: int) -> None:
        trained = [param for param in policy.parameters() if param.requires_grad]
        if any(isinstance(param, DTensor) for param in trained):
            return
        sums = (checksum(trained), checksum(reference.tensors(policy)))
        own = torch.stack([one.to(trainer.strategy.root_device) for one in sums])
        self._uncompared.append((step, cast(Tensor, trainer.strategy.all_gather(own))))

    def _check_ranks(self, step: int, sums: Tensor) -> None:
        for name, sums_of_ranks in zip((self.policy, self.reference), sums.unbind(-1), strict=True):
            if others := (sums_of_ranks != sums_of_ranks[0]).nonzero().flatten().tolist():
                raise DriftError(
                    f"the ranks have drifted apart: after step {step} the weights of {name!r} on rank {others[0]} are "
                    "not those on rank 0. Something draws random numbers, reads data or skips steps on one rank only; "
                    "go on from an earlier checkpoint"
                )

    def _measures(self, trainer: Trainer, step: int) -> bool:
        """Whether to measure distances and margins: at the last update before a logged step, or at that step."""
        every = max(trainer.log_every_n_steps, 1)  # type: ignore[attr-defined]
        logged = -(-trainer.global_step // every) * every
        return bool(trainer.loggers) and (not self.scheduled or self.next_update(step) > logged)

    def _measure(self, pl_module: Any, policy: nn.Module, reference: Any, batch: Any) -> dict[str, Tensor | float]:
        margin = pl_module.reward_margin(batch) if hasattr(pl_module, "reward_margin") else None
        figures = {"distance": reference.distance(policy), "margin": margin}
        return {name: value for name, value in figures.items() if value is not None}

    def _was_skipped(self, trainer: Trainer) -> bool:
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is None:
            return False
        before, self._loss_scale = self._loss_scale, scaler.get_scale()
        return self._loss_scale < before  # a scaler lowers its scale after an overflow
