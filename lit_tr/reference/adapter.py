"""AdapterReference: a reference that is a second LoRA adapter on the policy's own base."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_tr.errors import UserError
from lit_tr.policy.adapters import (
    POLICY_ADAPTER,
    adapter_parameters,
    add_adapter_copy,
    has_adapter,
    lora_factors,
    saved_modules,
)
from lit_tr.policy.loading import CAST_PRECISIONS
from lit_tr.policy.sharding import full_tensor, write
from lit_tr.reference.averaging import Alpha, alpha_of, soft_update_tensors
from lit_tr.reference.base import Reference, updates_of
from lit_tr.reference.lowrank import Batch, LowRank, averages, padded, squared_norm

CPU_NUMBERS, NUMBERS = 2**18, 2**26
"""Most numbers of a batch of layers: few enough for a CPU's cache, and elsewhere many, 0.5 GB in float64."""
SMALL_ALPHA = 2.0**-20
"""An alpha that stays below 1, where alphas are clamped, times any factor of `layers`."""


class AdapterReference(Reference):
    """A second, frozen LoRA adapter on the policy's own (4-bit) base.

    A hard update is exact. A soft update averages the weights, `alpha * B1 @ A1 + (1 - alpha) * B0 @ A0`, and truncates
    the average to the reference's rank; the truncation error is logged as `relative_error`, in the Frobenius norm over
    all layers, before the factors are rounded to the adapter's precision. The average of each factor by itself is
    another matrix: it differs from that of the weights by `alpha * (1 - alpha) * (B1 - B0) @ (A1 - A0)`.

    The `layers` of an update go by the names of the policy's own parameters; in weight space the A and B of a layer
    move as one, so both names must give the same alpha.

    Args:
        average: `weight_space`, or `factors` for the average of each factor, which costs next to nothing.
        rank: rank of the reference's adapter, the policy's or more; None takes twice the policy's for `weight_space`,
            and the policy's for `factors`, which can have no other.
        dtype: precision of the reference's adapter; None takes that of the policy's.
        log_error: with `factors`, compute the average of the weights as well, and log the `relative_error` to it.
    """

    adapter = "reference"

    def __init__(
        self,
        average: Literal["weight_space", "factors"] = "weight_space",
        rank: int | None = None,
        dtype: Literal["float32"] | None = None,
        log_error: bool = False,
    ) -> None:
        if average == "factors" and rank is not None:
            raise UserError("AdapterReference: factors of another rank cannot be averaged: leave rank out")
        if rank is not None and rank < 1:
            raise UserError(f"AdapterReference: rank must be at least 1, not {rank}")
        self.average, self.rank, self.dtype, self.log_error = average, rank, dtype, log_error

    def setup(self, trainer: Any, module: Any) -> None:
        """Check that the trainer does not cast an adapter that has a `dtype` of its own."""
        if self.dtype and str(trainer.precision) in CAST_PRECISIONS:
            raise UserError(
                f"trainer.precision {trainer.precision} would cast the reference that is to stay in {self.dtype}: take "
                f"{str(trainer.precision).replace('true', 'mixed')}, and model.policy.dtype for the precision of the "
                "weights"
            )

    def check_policy(self, has_adapter: bool) -> None:
        """Raise a `UserError` if there is no adapter."""
        if not has_adapter:
            raise UserError(
                "AdapterReference needs a policy with an adapter: set model.policy.lora, or take CopyReference"
            )

    def prepare(self, policy: nn.Module) -> None:
        """Become a copy of the policy, which must train a plain LoRA adapter."""
        self.check_policy(has_adapter(policy))
        growth = 1 if self.average == "factors" else 2
        dtype = getattr(torch, self.dtype) if self.dtype else None
        add_adapter_copy(policy, self.adapter, rank=self.rank, growth=growth, dtype=dtype)
        self._copy(policy)

    def on_fit_start(self, trainer: Any, module: Any) -> None:
        """Check that each update gives the A and B of a layer one alpha, in weight space."""
        for update in updates_of(trainer) if self.average == "weight_space" else []:
            self._alphas(self._pairs(module.policy), update.weights(SMALL_ALPHA))

    def update(self, policy: nn.Module, alpha: Alpha) -> dict[str, Any]:
        """Move the reference's adapter towards the policy's, which must not have diverged.

        Returns:
            `relative_error`: of the adapter's new weights to the average of the weights, a tensor that is still being
                computed on CUDA.
        """
        if alpha == 0:
            return {}
        if alpha == 1:
            self._copy(policy)
            return {"relative_error": 0.0}
        if self.average == "weight_space":
            error = self._average(policy, alpha)
            self._update_modules_to_save(policy, alpha)
            return {"relative_error": error}
        exact = self._exact(policy, alpha) if self.log_error else None
        soft_update_tensors(adapter_parameters(policy), adapter_parameters(policy, self.adapter), alpha)
        return {} if exact is None else {"relative_error": self._distance(policy, exact)}

    def tensors(self, policy: nn.Module) -> Iterable[Tensor]:
        """Return the parameters of the reference's adapter."""
        return adapter_parameters(policy, self.adapter).values()

    @torch.no_grad()
    def distance(self, policy: nn.Module) -> Tensor:
        """Return the Frobenius norm of the difference between what the two adapters add to the weights."""
        return torch.stack([_squared_distance(*pair) for pair in self._pairs(policy).values()]).sum().sqrt().float()

    def _pairs(self, policy: nn.Module) -> dict[str, tuple[LowRank, ...]]:
        """Return the factors of the policy and of the reference, by layer."""
        return lora_factors(policy, POLICY_ADAPTER, self.adapter)

    @torch.no_grad()
    def _copy(self, policy: nn.Module) -> None:
        for ours, theirs in self._pairs(policy).values():
            a, b = padded(_gathered(ours), theirs)
            write(theirs.a, a)
            write(theirs.b, b)
        self._update_modules_to_save(policy, 1.0)

    def _update_modules_to_save(self, policy: nn.Module, alpha: Alpha) -> None:
        """Update the `modules_to_save`, which are trained in full beside the factors."""
        soft_update_tensors(saved_modules(policy, POLICY_ADAPTER), saved_modules(policy, self.adapter), alpha)

    def _alphas(self, pairs: Iterable[str], alpha: Alpha) -> dict[str, float]:
        """Return the alpha of each layer, by the name of its A."""
        alphas = {name: alpha_of(alpha, name) for name in pairs}
        for name, one in alphas.items():
            other = name.replace("lora_A.", "lora_B.").replace("lora_embedding_A.", "lora_embedding_B.")
            if alpha_of(alpha, other) != one:
                raise UserError(
                    f"{name} has another alpha than its B, and in weight space a layer has one: name the layer in "
                    "layers, without lora_A and lora_B, or set average factors"
                )
        return alphas

    @torch.no_grad()
    def _average(self, policy: nn.Module, alpha: Alpha) -> Tensor:
        """Average all layers; return the relative error."""
        pairs = self._pairs(policy)
        lost = norm = torch.zeros((), dtype=torch.float64)
        for batches in _calls(pairs, self._alphas(pairs, alpha)):
            whole = [(_all_gathered(ours), _all_gathered(theirs), weight) for ours, theirs, weight in batches]
            factors, cut, total = _finite_averages(whole)
            for (_, theirs, _), (a, b) in zip(batches, factors, strict=True):
                _write([one.a for one in theirs], a)
                _write([one.b for one in theirs], b)
            lost, norm = lost + cut.sum(), norm + total.sum()
        return _ratio(lost, norm)

    @torch.no_grad()
    def _exact(self, policy: nn.Module, alpha: Alpha) -> dict[str, LowRank]:
        """Return the average of the weights, gathered, as stacked factors."""
        exact = {}
        for name, pair in self._pairs(policy).items():
            weight, (one, other) = alpha_of(alpha, name), map(_gathered, pair)
            b = torch.cat([weight * one.scaling * one.b, (1 - weight) * other.scaling * other.b], dim=-1)
            exact[name] = LowRank(torch.cat([one.a, other.a], dim=-2), b, 1.0)
        return exact

    @torch.no_grad()
    def _distance(self, policy: nn.Module, exact: dict[str, LowRank]) -> Tensor:
        """Return the distance of the reference's weights from `exact`, relative to the norm of `exact`."""
        theirs = lora_factors(policy, self.adapter)
        squares = [_squared_distance(one, *theirs[name]) for name, one in exact.items()]
        return _ratio(torch.stack(squares).sum(), torch.stack([squared_norm(one) for one in exact.values()]).sum())


def _calls(pairs: dict[str, tuple[LowRank, ...]], alphas: dict[str, float]) -> Iterable[list[Batch]]:
    """Return the batches of layers that are averaged in one call: of one device and the same ranks, or one shard."""
    alike: dict[tuple, list[tuple[LowRank, ...]]] = {}
    for name, (ours, theirs) in pairs.items():
        if alphas[name] != 0:
            ranks, shape = (ours.a.shape[0], theirs.a.shape[0]), (ours.a.shape[1], ours.b.shape[0])
            key = (ours.a.device, ranks, shape, ours.scaling, theirs.scaling, alphas[name])
            alike.setdefault(key, []).append((ours, theirs))
    calls: dict[Any, list[Batch]] = {}
    for (device, ranks, shape, *_, alpha), layers in alike.items():
        size = max((CPU_NUMBERS if device.type == "cpu" else NUMBERS) // (sum(ranks) * sum(shape)), 1)
        sharded = isinstance(layers[0][0].a, DTensor)  # shards are gathered layer by layer
        for i in range(0, len(layers), step := 1 if sharded else size):
            policies, references = (list(side) for side in zip(*layers[i : i + step], strict=True))
            calls.setdefault(len(calls) if sharded else (device, ranks), []).append((policies, references, alpha))
    return calls.values()


def _finite_averages(batches: Sequence[Batch]) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]:
    try:
        return averages(batches)
    except torch.linalg.LinAlgError as error:
        raise UserError(
            "the policy's adapter cannot be averaged, for it holds non-finite numbers: training has diverged; lower "
            "the learning rate, or go on from an earlier checkpoint"
        ) from error


def _write(targets: list[Tensor], values: Tensor) -> None:
    if isinstance(targets[0], DTensor):
        for target, value in zip(targets, values, strict=True):
            write(target, value)
    else:
        torch._foreach_copy_(targets, list(values))


def _all_gathered(factors: Iterable[LowRank]) -> list[LowRank]:
    return [_gathered(one) for one in factors]


def _gathered(one: LowRank) -> LowRank:
    return replace(one, a=full_tensor(one.a), b=full_tensor(one.b))


def _squared_distance(one: LowRank, other: LowRank) -> Tensor:
    other = _gathered(other)
    return squared_norm(_gathered(one), replace(other, b=-other.b))


def _ratio(lost: Tensor, total: Tensor) -> Tensor:
    """Return the square root of a share, on the device: it is read where it is logged."""
    return (lost / total.clamp(min=torch.finfo(total.dtype).tiny)).sqrt().float()
