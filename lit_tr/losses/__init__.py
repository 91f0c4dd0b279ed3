"""Preference losses, one family a file."""

from lit_tr.losses.base import Loss, Scores
from lit_tr.losses.dpo import DPO, FDPO
from lit_tr.losses.ipo import IPO
from lit_tr.losses.kto import KTO
from lit_tr.losses.sft import SFT
from lit_tr.losses.simpo import SimPO
from lit_tr.losses.tdpo import TDPO1, TDPO2

__all__ = ["DPO", "FDPO", "IPO", "KTO", "SFT", "TDPO1", "TDPO2", "Loss", "Scores", "SimPO"]
