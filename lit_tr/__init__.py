"""Trust-Region preference alignment for PyTorch Lightning: TR-DPO, TR-IPO, TR-KTO (arXiv 2404.09656)."""

from lit_tr.callbacks import HardReferenceUpdate, SoftReferenceUpdate
from lit_tr.data.datamodule import PreferenceDataModule
from lit_tr.module import PreferenceModule

__all__ = ["HardReferenceUpdate", "PreferenceDataModule", "PreferenceModule", "SoftReferenceUpdate"]
