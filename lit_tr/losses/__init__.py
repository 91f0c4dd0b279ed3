"""Preference losses, one family a file."""

from lit_tr.losses.base import CERTAIN, Labels, Loss, Scores
from lit_tr.losses.dpo import DPO
from lit_tr.losses.ipo import IPO
from lit_tr.losses.kto import KTO
from lit_tr.losses.sft import SFT

__all__ = ["CERTAIN", "DPO", "IPO", "KTO", "SFT", "Labels", "Loss", "Scores"]
