"""Trust-Region preference alignment for PyTorch Lightning: TR-DPO, TR-IPO, TR-KTO (arXiv 2404.09656)."""

import logging
import warnings
from typing import TYPE_CHECKING

from lit_tr.lazy import lazy

EXPECTED_WARNINGS = (  # false alarms of other libraries
    "LightningCLI's args parameter is intended to run from within Python",
    r"Found \d+ module\(s\) in eval mode",  # the references
    "Precision bf16-mixed is not supported by the model summary",
    r"It is recommended to use `self\.log\('(val|test)/",  # the means are those of all ranks already
    "Total length of `list` across ranks is zero",  # no validation rows
    "'set_vital' is deprecated",  # torchdata 0.11 with torch 2.13
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.13
)


def ignore_expected_warnings() -> None:
    """Ignore the expected warnings of other libraries, at `import lit_tr` and at each run of `lit-tr`."""
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)


ignore_expected_warnings()
# PEFT imports bitsandbytes, which logs an optional CPU kernel that is missing as an error
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)

if TYPE_CHECKING:
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

__getattr__, __dir__ = lazy(
    __name__,
    {
        "data.datamodule": ["PreferenceDataModule"],
        "module": ["PreferenceModule"],
        "updates": [name for name in __all__ if name.endswith("Update")],
    },
)
