"""Averages of low-rank matrices, truncated to a low rank."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lit_tr.policy.adapters import LowRank

ITERATIONS = 8
"""Of `iterated`. With 8 the error on flat spectra is at most 4 % above the least there is."""
JITTER = 1e-13
"""What is added to a Gram matrix, relative to its trace: its rows may be dependent, and its Cholesky factor exists."""

Batch = tuple[Sequence[LowRank], Sequence[LowRank], float]
"""Matrices of the policy, of the reference, all of one shape, and the weight of the policy's."""


def average(policy: LowRank, reference: LowRank, alpha: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the factors of `alpha * policy + (1 - alpha) * reference`, as `averages` does.

    Args:
        policy: `(..., out, in)` of any rank.
        reference: `(..., out, in)`.
        alpha: weight of the policy.
    """
    factors, cut, total = averages([([policy], [reference], alpha)])
    return factors[0][0][0], factors[0][1][0], cut[0], total[0]


def averages(
    batches: Sequence[Batch], leading: Callable[[Tensor, int], Tensor] | None = None
) -> tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]:
    """Return the factors of the averages of all matrices, at the reference's rank and scaling.

    An average is the product of the stacked factors `L = [(1 - alpha) * B0, alpha * B1]` and `R = [A0; A1]`. With
    `R = C @ Q`, where Q has orthonormal rows, its best approximation of a rank (Eckart and Young 1936) keeps the first
    eigenvectors of `C.T @ L.T @ L @ C`. That takes only the small matrices `L.T @ L` and `R @ R.T`, in float64, where
    squaring loses nothing of float32. Those of all batches are decomposed at once.

    Args:
        batches: their ranks are the same.
        leading: finds the first eigenvectors: `exact`, or on CUDA `iterated` if it is None.

    Returns:
        `a`, `(matrices, ..., rank, in)`, and `b`, `(matrices, ..., out, rank)`, by batch; the squared Frobenius norms
        of what is left out, `(all matrices, ...)`; and those of the averages. Numbers that are not finite give such.
    """
    grams = [[left.mT @ left, right @ right.mT] for left, right in map(_stacked, batches)]
    columns, rows = (torch.cat(one) for one in zip(*grams, strict=True))
    core = _cholesky(rows)
    small, rank = core.mT @ columns @ core, batches[0][1][0].a.shape[-2]
    kept = (leading or (iterated if small.is_cuda else exact))(small, rank)
    squares = (kept * (small @ kept)).sum(-2, keepdim=True)
    total = small.diagonal(dim1=-2, dim2=-1).sum(-1)
    cut = (total - squares.sum((-2, -1))).clamp(min=0)
    squares = torch.where(squares > 1e-15 * total[..., None, None], squares, 0.0)  # less is round-off
    of_b, of_a = core @ kept, torch.linalg.solve_triangular(core.mT, kept, upper=True).mT
    sizes = [len(theirs) for _, theirs, _ in batches]
    parts = zip(batches, *(one.split(sizes) for one in (of_b, of_a, squares.sqrt())), strict=True)
    return [_factors(*part) for part in parts], cut, total


def _stacked(batch: Batch) -> tuple[Tensor, Tensor]:
    ours, theirs, alpha = batch
    weights = (((1 - alpha) * theirs[0].scaling, theirs), (alpha * ours[0].scaling, ours))
    left = torch.cat([torch.stack([one.b for one in many]).double().mul_(weight) for weight, many in weights], dim=-1)
    return left, torch.cat([torch.stack([one.a for one in many]).double() for _, many in weights], dim=-2)


def _factors(batch: Batch, of_b: Tensor, of_a: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return a and b: singular vectors, each with the root of its singular value."""
    (left, right), scaling = _stacked(batch), batch[1][0].scaling
    roots = (values / scaling).sqrt()
    inverse = torch.where(roots > 0, 1 / (roots * scaling), 0.0)
    return (of_a * roots.mT @ right).float(), (left @ (of_b * inverse)).float()


def exact(small: Tensor, rank: int) -> Tensor:
    """Return the first eigenvectors of symmetric matrices, `(..., size, rank)`."""
    return torch.linalg.eigh(small)[1][..., -rank:]


def iterated(small: Tensor, rank: int) -> Tensor:
    """Return orthonormal bases of almost the space of the first eigenvectors, `(..., size, rank)`.

    By subspace iteration, whose steps are batched and wait for nothing: on CUDA `eigh` takes matrices of more than 32
    rows one after the other, and waits for its status. It starts from the reference's rows, the first ones, of which an
    average is a correction, and from some of the policy's, so that what fits into the rank is found by the first step.
    """
    size = small.shape[-1]
    steps = torch.arange(1, size + 1, dtype=small.dtype, device=small.device)
    start = torch.eye(size, rank, dtype=small.dtype, device=small.device)
    start[rank:] = 0.1 * torch.cos(steps[rank:, None] * steps[:rank])
    basis = start
    for _ in range(ITERATIONS):
        basis = _orthonormal(small @ basis)
    return 1.5 * basis - 0.5 * basis @ (basis.mT @ basis)  # takes the jitter of the last step out


def _orthonormal(columns: Tensor) -> Tensor:
    """Return columns made orthonormal by the Cholesky factor of their Gram matrix; columns of zeros stay so."""
    columns = torch.nn.functional.normalize(columns, dim=-2, eps=torch.finfo(columns.dtype).tiny)
    return torch.linalg.solve_triangular(_cholesky(columns.mT @ columns), columns.mT, upper=False).mT


def _cholesky(gram: Tensor) -> Tensor:
    trace = gram.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
    gram.diagonal(dim1=-2, dim2=-1).add_(JITTER * trace + torch.finfo(gram.dtype).tiny)
    return torch.linalg.cholesky_ex(gram)[0]


def padded(policy: LowRank, reference: LowRank) -> tuple[Tensor, Tensor]:
    """Return the policy's factors, padded with zeros to the reference's rank and at its scaling: the same matrix."""
    more = reference.a.shape[-2] - policy.a.shape[-2]
    a = torch.nn.functional.pad(policy.a, (0, 0, 0, more))
    b = torch.nn.functional.pad(policy.b * (policy.scaling / reference.scaling), (0, more))
    return a, b


def squared_norm(*terms: LowRank) -> Tensor:
    """Return the squared Frobenius norm of the sum of some matrices, `(...)`, in float64, from their factors."""
    left = torch.cat([term.scaling * term.b.double() for term in terms], dim=-1)
    right = torch.cat([term.a.double() for term in terms], dim=-2)
    return ((left.mT @ left) * (right @ right.mT)).sum((-2, -1))
