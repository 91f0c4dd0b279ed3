"""Trust-Region preference alignment for PyTorch Lightning: TR-DPO, TR-IPO, TR-KTO (arXiv 2404.09656)."""

import logging
import warnings
from typing import TYPE_CHECKING

from lit_tr.lazy import lazy

EXPECTED_WARNINGS = (  # false alarms of other libraries
    "No seed found, seed set to",  # what a run says at its start
    "LightningCLI's args parameter is intended to run from within Python",
    r"Found \d+ module\(s\) in eval mode",  # the references
    "Precision bf16-mixed is not supported by the model summary",
    r"It is recommended to use `self\.log\('(val|test)/",  # the means are those of all ranks already
    "Total length of `list` across ranks is zero",  # no validation rows
    "The dirpath has changed from",  # a resumed run has its own folder
    "Experiment logs directory .* exists and is not empty",  # the list of bad rows is there already
    "Starting from v1.9.0, `tensorboardX` has been removed",
    "IProgress not found",  # a bar of tqdm in a notebook without ipywidgets
    "`is_gradient_checkpointing` is deprecated",  # PEFT 0.21 with transformers 5.24
    "_check_is_size will be removed",  # bitsandbytes 0.49 with torch 2.11
    "'set_vital' is deprecated",  # torchdata 0.11 with torch 2.13
    r"\s*(By default only one Jsonargparse|skip_none parameter was deprecated)",  # 4.49 knows it by no other name
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # Lightning 2.6 with torch 2.13
)


def ignore_expected_warnings() -> None:
    """Ignore the expected warnings of other libraries, at `import lit_tr` and at each run of `lit-tr`."""
    for message in EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)


ignore_expected_warnings()
# PEFT imports bitsandbytes, which logs an optional CPU kernel that is missing as an error
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
    lambda record: "Tip: For seamless" not in record.getMessage()  # of products that are not installed
)

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
