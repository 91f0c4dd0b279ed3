"""Preference losses, one family a file."""

from lit_tr.losses.apo import APODown, APOZero
from lit_tr.losses.base import Loss, Scores
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
from lit_tr.losses.nca import NCA
from lit_tr.losses.orpo import ORPO
from lit_tr.losses.pairs import DifferenceLoss, PairLoss
from lit_tr.losses.robust import RobustDPO
from lit_tr.losses.sft import SFT
from lit_tr.losses.simpo import SimPO
from lit_tr.losses.sppo import SPPO

__all__ = [
    "CPO",
    "DPO",
    "EXO",
    "IPO",
    "IREPO",
    "ISDPO",
    "ISIPO",
    "KTO",
    "NCA",
    "ORPO",
    "SFT",
    "SPPO",
    "APODown",
    "APOZero",
    "AlphaDivergence",
    "DifferenceLoss",
    "DiscoPOP",
    "Divergence",
    "ForwardKL",
    "Hinge",
    "HyPO",
    "JensenShannon",
    "Loss",
    "PairLoss",
    "ReverseKL",
    "RobustDPO",
    "Scores",
    "SimPO",
]
