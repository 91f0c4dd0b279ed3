"""Soft and hard updates of weights."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from lit_tr.errors import UserError


def check_alpha(alpha: float) -> float:
    """Return alpha if it lies in (0, 1].

    Raises:
        UserError: it does not.
    """
    if not 0 < alpha <= 1:
        raise UserError(f"alpha must be in (0, 1], not {alpha}: 1 copies the policy, 0 would never move the reference")
    return alpha


def blend(policy: nn.Module, reference: nn.Module, alpha: float) -> None:
    """Move a reference model towards a policy: `reference <- alpha * policy + (1 - alpha) * reference`.

    Eq. 5 of the TR-DPO paper (arXiv 2404.09656), and with alpha = 1 its Eq. 6.

    All floating-point parameters are blended, frozen ones too; packed integer or 4-bit codes never are. Buffers are
    copied. With alpha = 1 the result equals the policy bit for bit.

    Args:
        policy: the model in training.
        reference: a model of the same architecture.
        alpha: weight of the policy, in (0, 1].

    Raises:
        UserError: alpha is out of range, or the two models differ in names or shapes.
    """
    plain = {name: param for name, param in _parameters(policy).items() if not _is_packed(param)}
    blend_tensors(plain, _parameters(reference), alpha)
    buffers = _plain(reference.named_buffers())
    for name, buffer in _plain(policy.named_buffers()).items():
        if name in buffers:
            buffers[name].copy_(buffer)


@torch.no_grad()
def blend_tensors(policy: Mapping[str, Tensor], reference: Mapping[str, Tensor], alpha: float) -> None:
    """Blend tensors by name, as `blend` does; `reference` may hold more names than `policy`.

    The sum is taken in the reference's own precision: in bfloat16 a step of less than 1/256 of a weight is lost.
    """
    check_alpha(alpha)
    check_match(policy, reference)
    for name, param in policy.items():
        if alpha == 1:
            reference[name].copy_(param)
        else:
            reference[name].lerp_(param.to(reference[name]), alpha)


def check_match(policy: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> None:
    """Check that a reference has a tensor of the same shape for each of the policy's.

    Raises:
        UserError: it has not; the message names the first one.
    """
    for name, param in policy.items():
        if name not in reference:
            raise UserError(
                f"the reference has no parameter {name!r}: policy and reference must be of one architecture"
            )
        if param.shape != reference[name].shape:
            shapes = f"{tuple(param.shape)} in the policy, {tuple(reference[name].shape)} in the reference"
            raise UserError(f"parameter {name!r} has the shape {shapes}")


def check_models(policy: nn.Module, reference: nn.Module) -> None:
    """Check that two models can be blended: the same names and shapes on both sides, and something that is trained.

    Raises:
        UserError: they cannot.
    """
    ours, theirs = _parameters(policy), _parameters(reference)
    check_match(ours, theirs)
    check_match(theirs, ours)
    if not any(param.requires_grad for param in ours.values()):
        raise UserError("no parameter of the policy is trained, so a reference could never move")


def _is_packed(param: Tensor) -> bool:
    # bitsandbytes can keep its codes in a floating-point type
    return not param.is_floating_point() or hasattr(param, "quant_state")


def _parameters(model: nn.Module) -> dict[str, Tensor]:
    return _plain(model.named_parameters())


def _plain(named: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    # torch.compile puts a prefix before the names of what it wraps
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in named}
