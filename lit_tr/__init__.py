"""Trust-Region preference alignment for PyTorch Lightning: TR-DPO, TR-IPO, TR-KTO (arXiv 2404.09656)."""

import warnings

EXPECTED_WARNINGS = (  # false alarms of other libraries
    "LightningCLI's args parameter is intended to run from within Python",
    r"Found \d+ module\(s\) in eval mode",  # the references
    "Precision bf16-mixed is not supported by the model summary",
    r"It is recommended to use `self\.log\('(val|test)/",  # the means are those of all ranks already
    "Total length of `list` across ranks is zero",  # no validation rows
    "The dirpath has changed from",  # a resumed run has its own folder
    "Experiment logs directory .* exists and is not empty",  # the list of bad rows is there already
    "'set_vital' is deprecated",  # torchdata 0.11 with torch 2.13
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.13
)


def ignore_expected_warnings() -> None:
    """Ignore the expected warnings of other libraries, at `import lit_tr` and at each run of `lit-tr`."""
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)


ignore_expected_warnings()

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
