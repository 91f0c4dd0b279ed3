"""Callbacks that let a reference follow a policy, in lit_tr's module or in any other."""

from lit_tr.updates.base import ReferenceUpdate
from lit_tr.updates.kinds import (
    AdaptiveReferenceUpdate,
    CosineReferenceUpdate,
    HardReferenceUpdate,
    SoftReferenceUpdate,
)

__all__ = [
    "AdaptiveReferenceUpdate",
    "CosineReferenceUpdate",
    "HardReferenceUpdate",
    "ReferenceUpdate",
    "SoftReferenceUpdate",
]
