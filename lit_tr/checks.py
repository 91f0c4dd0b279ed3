"""What does not go together is refused before weights are loaded; what would have no effect is said before training."""

from typing import Any

from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn

from lit_tr.errors import UserError
from lit_tr.losses import Loss
from lit_tr.policy.adapters import has_adapter
from lit_tr.policy.loading import CAST_PRECISIONS
from lit_tr.reference import Reference
from lit_tr.reference.base import updates_of
from lit_tr.warned import warn


def check_arguments(reference: Any, loss: Any) -> None:
    """Raise a `UserError` where a reference or a loss is none, or the reference is not what the loss needs."""
    for name, value, kind in (("loss", loss, Loss), ("reference", reference, Reference)):
        if not isinstance(value, kind | None if name == "reference" else kind):
            raise UserError(
                f"PreferenceModule: {name} must be a subclass of {kind.__module__}.{kind.__name__}, and is "
                f"{type(value).__name__}"
            )
    if reference is None and (loss.needs_reference or loss.needs_kl):
        raise UserError(f"PreferenceModule: {type(loss).__name__} needs a reference: FrozenReference, say")
    if loss.needs_kl and reference.log_probs_only:
        raise UserError(
            f"PreferenceModule: {type(loss).__name__} needs the distributions of the reference, and as configured "
            f"{type(reference).__name__} holds log-probs alone: take CopyReference, with an adapter AdapterReference, "
            "or FrozenReference without precompute"
        )
    if reference is not None and reference.moves and not loss.needs_reference:
        raise UserError(
            f"PreferenceModule: {type(loss).__name__} needs no reference, so there is none to move: leave "
            f"{type(reference).__name__} out (--model.reference null), and the update (--update null)"
        )


def check_trainer(trainer: Any) -> None:
    """Raise a `UserError` where the strategy hides weights, or a callback averages what it cannot."""
    strategy = trainer.strategy
    if isinstance(strategy, (FSDPStrategy, DeepSpeedStrategy)):
        raise UserError(
            f"{type(strategy).__name__} flattens weights or gradients, which a reference and a mean over pairs go "
            "by: take trainer.strategy ddp, or to shard weights lightning.pytorch.strategies.ModelParallelStrategy"
        )
    for callback in trainer.callbacks:
        if isinstance(callback, StochasticWeightAveraging):
            raise UserError(
                "StochasticWeightAveraging copies the module before its weights are loaded: take EMAWeightAveraging"
            )
        if isinstance(callback, WeightAveraging) and isinstance(strategy, ModelParallelStrategy):
            raise UserError(f"{type(callback).__name__} does not work with ModelParallelStrategy: take ddp")


def check_trained(policy: nn.Module) -> None:
    """Raise a `UserError` where nothing of a policy would be trained."""
    if not any(param.requires_grad for param in policy.parameters()):
        raise UserError(
            "PreferenceModule: no parameter of the policy requires a gradient, so none would be trained; to train an "
            "adapter, give its base as path and its folder as adapter"
        )


def check_precision(policy: nn.Module, precision: Any, sharded: bool) -> None:
    """Raise a `UserError` where the precision would cast 4-bit codes or shards; warn where it spoils adapters."""
    cast = CAST_PRECISIONS.get(str(precision))
    if cast is None:
        return
    mixed = str(precision).replace("true", "mixed")
    for name, param in policy.named_parameters():
        if hasattr(param, "quant_state") and param.is_floating_point() and param.dtype != cast:
            raise UserError(
                f"{name}: trainer.precision {precision} would cast 4-bit codes that are held as {param.dtype}: take "
                f"{mixed}, or load the policy in {cast}"
            )
    if sharded:
        raise UserError(
            f"trainer.precision {precision} would cast weights when they are sharded: take {mixed}, or 32-true with a "
            f"policy whose dtype is {str(cast).removeprefix('torch.')}"
        )
    if has_adapter(policy):
        warn(
            f"trainer.precision {precision} holds adapters in {cast}, where small steps are lost: {mixed} keeps them "
            "in float32 on a base of any precision"
        )


def say_what_does_not_move(module: Any) -> None:
    """Say in one line where a reference that could move never will."""
    reference, trainer = module.reference, module.trainer
    if reference is None or not reference.moves:
        return
    kind, updates = type(reference).__name__, updates_of(trainer)
    if not updates:
        warn(f"{kind} will not move, for no callback updates it: add one, or take FrozenReference")
    first = min((c.next_update(0) for c in updates), default=0)
    if 0 < trainer.max_steps < first:
        warn(f"{kind} will not move: its first update follows step {first}, and max_steps is {trainer.max_steps}")
