"""Preference losses, one family a file."""

from lit_tr.losses.base import Loss, Scores
from lit_tr.losses.bco import BCO
from lit_tr.losses.dpo import DPO, FDPO
from lit_tr.losses.ipo import IPO
from lit_tr.losses.kto import KTO
from lit_tr.losses.length import LDDPO
from lit_tr.losses.sft import SFT
from lit_tr.losses.simpo import SimPO
from lit_tr.losses.tdpo import TDPO1, TDPO2
from lit_tr.losses.weighted import Weighted

__all__ = [
    "BCO",
    "DPO",
    "FDPO",
    "IPO",
    "KTO",
    "LDDPO",
    "SFT",
    "TDPO1",
    "TDPO2",
    "Loss",
    "Scores",
    "SimPO",
    "Weighted",
]
