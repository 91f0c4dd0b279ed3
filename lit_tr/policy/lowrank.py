"""The average of two low-rank matrices, back to a low rank."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """A matrix `scaling * b @ a`, or some of the same shapes.

    Args:
        a: factor, `(..., rank, in)`.
        b: factor, `(..., out, rank)`.
        scaling: LoRA's scaling.
    """

    a: Tensor
    b: Tensor
    scaling: float


def average(policy: LowRank, reference: LowRank, alpha: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the factors of `alpha * policy + (1 - alpha) * reference` at the reference's rank and scaling.

    The average is the product of the stacked factors `[alpha * B1, (1 - alpha) * B0]` and `[A1; A0]`; a QR of both and
    an SVD of the small core between them give its best approximation of a rank (Eckart and Young 1936), in float32.

    Args:
        policy: `(..., out, in)` of any rank.
        reference: `(..., out, in)`.
        alpha: weight of the policy.

    Returns:
        `a`, `(..., rank, in)`; `b`, `(..., out, rank)`; the square of the Frobenius norm of what was cut off, `(...)`;
        and that of the average, `(...)`.
    """
    rank = reference.a.shape[-2]
    left = torch.cat(
        [alpha * policy.scaling * policy.b.float(), (1 - alpha) * reference.scaling * reference.b.float()], dim=-1
    )
    right = torch.cat([policy.a.float(), reference.a.float()], dim=-2)
    left_basis, left_core = torch.linalg.qr(left)
    right_basis, right_core = torch.linalg.qr(right.mT)
    u, values, v = torch.linalg.svd(left_core @ right_core.mT, full_matrices=False)
    roots = (values[..., :rank] / reference.scaling).sqrt()
    b = (left_basis @ u[..., :rank]) * roots[..., None, :]
    a = roots[..., :, None] * (v[..., :rank, :] @ right_basis.mT)
    missing = rank - roots.shape[-1]  # of a layer that is smaller than the rank
    a = torch.nn.functional.pad(a, (0, 0, 0, missing))
    b = torch.nn.functional.pad(b, (0, missing))
    squares = values.square()
    return a, b, squares[..., rank:].sum(-1), squares.sum(-1)


def widened(policy: LowRank, reference: LowRank) -> tuple[Tensor, Tensor]:
    """Return the policy's factors at the reference's rank, with zeros, and at its scaling: the same matrix."""
    more = reference.a.shape[-2] - policy.a.shape[-2]
    a = torch.nn.functional.pad(policy.a, (0, 0, 0, more))
    b = torch.nn.functional.pad(policy.b * (policy.scaling / reference.scaling), (0, more))
    return a, b


def squared_norm(*parts: LowRank) -> Tensor:
    """Return the square of the Frobenius norm of the sum of some matrices, `(...)`, in float64, without making it."""
    left = torch.cat([part.scaling * part.b.double() for part in parts], dim=-1)
    right = torch.cat([part.a.double() for part in parts], dim=-2)
    return ((left.mT @ left) * (right @ right.mT)).sum((-2, -1))
