"""Preference data: rows of any format become batches of token ids."""

from lit_tr.data.batches import PackedBatch, PaddedBatch, PairBatch
from lit_tr.data.collator import Collator
from lit_tr.data.datamodule import PreferenceDataModule
from lit_tr.data.example import Example
from lit_tr.data.rows import DistributionMatching, Mixture, Objects, Rows, Source, Without

__all__ = [
    "Collator",
    "DistributionMatching",
    "Example",
    "Mixture",
    "Objects",
    "PackedBatch",
    "PaddedBatch",
    "PairBatch",
    "PreferenceDataModule",
    "Rows",
    "Source",
    "Without",
]
