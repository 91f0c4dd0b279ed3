"""Preference losses, one family a file."""

from lit_tr.losses.apo import APODown, APOZero
from lit_tr.losses.base import Loss, Scores
from lit_tr.losses.bco import BCO
from lit_tr.losses.cpo import CPO
from lit_tr.losses.discopop import DiscoPOP
from lit_tr.losses.divergences import AlphaDivergence, Divergence, ForwardKL, JensenShannon, ReverseKL
from lit_tr.losses.dpo import DPO
from lit_tr.losses.exo import EXO
from lit_tr.losses.hinge import Hinge
from lit_tr.losses.hypo import HyPO
from lit_tr.losses.importance import ISDPO, ISIPO
from lit_tr.losses.ipo import IPO
from lit_tr.losses.irepo import IREPO
from lit_tr.losses.kto import KTO
from lit_tr.losses.length import LDDPO
from lit_tr.losses.nca import NCA
from lit_tr.losses.orpo import ORPO
from lit_tr.losses.pairs import DifferenceLoss, PairLoss
from lit_tr.losses.robust import RobustDPO
from lit_tr.losses.selm import SELM
from lit_tr.losses.sft import SFT
from lit_tr.losses.simpo import SimPO
from lit_tr.losses.sppo import SPPO
from lit_tr.losses.tdpo import TDPO1, TDPO2
from lit_tr.losses.weighted import Weighted

__all__ = [
    "APODown",
    "APOZero",
    "Loss",
    "Scores",
    "BCO",
    "CPO",
    "DiscoPOP",
    "AlphaDivergence",
    "Divergence",
    "ForwardKL",
    "JensenShannon",
    "ReverseKL",
    "DPO",
    "EXO",
    "Hinge",
    "HyPO",
    "ISDPO",
    "ISIPO",
    "IPO",
    "IREPO",
    "KTO",
    "LDDPO",
    "NCA",
    "ORPO",
    "DifferenceLoss",
    "PairLoss",
    "RobustDPO",
    "SELM",
    "SFT",
    "SimPO",
    "SPPO",
    "TDPO1",
    "TDPO2",
    "Weighted",
]
