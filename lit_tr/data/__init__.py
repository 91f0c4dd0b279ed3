"""Preference data: rows of any format become batches of token ids."""

from lit_tr.data.batches import Collator, PackedBatch, PaddedBatch, PairBatch
from lit_tr.data.datamodule import PreferenceDataModule
from lit_tr.data.example import Example
from lit_tr.data.mixture import Mixture
from lit_tr.data.sources import Rows, Source

__all__ = [
    "Collator",
    "Example",
    "Mixture",
    "PackedBatch",
    "PaddedBatch",
    "PairBatch",
    "PreferenceDataModule",
    "Rows",
    "Source",
]
