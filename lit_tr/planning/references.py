"""Memory of a reference, measured by its own code on a policy without values."""

import gc
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from lit_tr.errors import explained
from lit_tr.planning.ledger import Ledger, frozen
from lit_tr.policy.loading import CAST_PRECISIONS, PretrainedPolicy
from lit_tr.reference import Reference

UPDATES = 64
"""Most updates that are run."""


def reference_bytes(
    reference: Reference | None, source: PretrainedPolicy, alpha: float | None, precision: str, device: str
) -> tuple[int, int]:
    """Return the peak bytes of a copy of a reference while it is prepared, and its bytes after updates by `alpha`.

    Only tensors on the policy's type of device are counted, and not the policy itself.

    Raises:
        UserError: it does not work with the policy or the updates, or it reads values of weights, which a plan does not
            have.
    """
    if reference is None:
        return 0, 0
    said = "cannot be planned: its prepare or update asks for the values of weights, and a plan has none"
    with frozen(), explained(f"{type(reference).__name__} {said}", NotImplementedError):
        return _run(deepcopy(reference), source, alpha, precision, device)


def cast(module: Any, precision: str) -> Any:
    """Cast a module or a reference in place, as Lightning does for a true half precision, and return it."""
    if dtype := CAST_PRECISIONS.get(precision):
        module._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
    return module


def _run(
    reference: Reference, source: PretrainedPolicy, alpha: float | None, precision: str, device: str
) -> tuple[int, int]:
    policy = cast(source.load_meta(), precision)
    # a new adapter's second factor is 0, a trained one's is not
    ledger = Ledger(device=device, reads=0 if source.lora else 1)
    with ledger, torch.device("meta"):
        reference.prepare(policy)
        most = ledger.peak
        cast(policy, precision)
        cast(reference, precision)
        if alpha is not None and reference.moves:
            _update(reference, policy, alpha, ledger)
    gc.collect()
    return most, ledger.live


def _update(reference: Reference, policy: nn.Module, alpha: float, ledger: Ledger) -> None:
    """Update a reference until its memory stays the same: some allocate at their first updates."""
    before = -1
    for _ in range(UPDATES):
        gc.collect()
        if ledger.live == before:
            break
        before = ledger.live
        reference.update(policy, alpha)
