"""Trust-Region preference alignment for PyTorch Lightning: TR-DPO, TR-IPO, TR-KTO (arXiv 2404.09656)."""

from lit_tr.data.datamodule import PreferenceDataModule
from lit_tr.module import PreferenceModule
from lit_tr.updates import (
    AdaptiveReferenceUpdate,
    CosineReferenceUpdate,
    HardReferenceUpdate,
    ReferenceUpdate,
    SoftReferenceUpdate,
)

__all__ = [
    "AdaptiveReferenceUpdate",
    "CosineReferenceUpdate",
    "HardReferenceUpdate",
    "PreferenceDataModule",
    "PreferenceModule",
    "ReferenceUpdate",
    "SoftReferenceUpdate",
]
