"""What a reference holds, found out by letting it become a policy without values, and follow it."""

import gc
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from lit_tr.errors import UserError
from lit_tr.planning.dry_run import Ledger
from lit_tr.policy.loading import CAST_PRECISIONS, PretrainedPolicy
from lit_tr.reference import Reference

UPDATES = 64
"""Updates that are run at most."""


def reference_bytes(
    reference: Reference | None, source: PretrainedPolicy, alpha: float | None, precision: str, device: str
) -> tuple[int, int]:
    """Return the most bytes that a reference takes while it is prepared, and what it holds after updates.

    What lies on another device than the policy is not counted, and neither is what it is given.

    Args:
        reference: is copied, and then prepared and updated by its own code; None holds nothing.
        source: where the policy comes from.
        alpha: weight of the policy in the updates; None for no updates.
        precision: the trainer's.
        device: type of the policy's device.

    Raises:
        UserError: it does not go with the policy or with the updates, or it asks for values that a plan has not.
    """
    if reference is None:
        return 0, 0
    gc.freeze()  # or each collection would go through all modules that are imported
    try:
        return _run(deepcopy(reference), source, alpha, precision, device)
    except NotImplementedError as error:
        raise UserError(
            f"{type(reference).__name__} cannot be planned: its prepare or update asks for the values of weights, and "
            f"a plan has none ({error})"
        ) from error
    finally:
        gc.unfreeze()


def cast(module: Any, precision: str) -> Any:
    """Cast a module or a reference in place, as Lightning does for a precision of weights, and return it."""
    if dtype := CAST_PRECISIONS.get(precision):
        module._apply(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)
    return module


def _run(
    reference: Reference, source: PretrainedPolicy, alpha: float | None, precision: str, device: str
) -> tuple[int, int]:
    policy = cast(source.load_meta(), precision)
    # what is read of a new adapter's second factor is 0, of a trained one's it is not
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
    """Update a reference until it holds no more than before: some fill up with their first updates."""
    held = -1
    for _ in range(UPDATES):
        gc.collect()
        if ledger.live == held:
            break
        held = ledger.live
        reference.update(policy, alpha)
