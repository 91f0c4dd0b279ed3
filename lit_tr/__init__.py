"""Trust-Region preference alignment for PyTorch Lightning: TR-DPO, TR-IPO, TR-KTO (arXiv 2404.09656)."""

import logging

# at its import, bitsandbytes calls an optional CPU kernel that it does not find a failure
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

from lit_tr.callbacks import HardReferenceUpdate, SoftReferenceUpdate
from lit_tr.data.datamodule import PreferenceDataModule
from lit_tr.module import PreferenceModule

__all__ = ["HardReferenceUpdate", "PreferenceDataModule", "PreferenceModule", "SoftReferenceUpdate"]
