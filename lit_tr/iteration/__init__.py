"""Rounds that sample, score, pair and train."""

from typing import TYPE_CHECKING

from lit_tr.lazy import lazy

if TYPE_CHECKING:
    from lit_tr.iteration.confidence import Confidence, RankAgreement, Votes
    from lit_tr.iteration.figures import Stop
    from lit_tr.iteration.instruct import SelfInstruct
    from lit_tr.iteration.pairing import AllPairs, MaxMin, MaxRandom, Pairing, scored_pair
    from lit_tr.iteration.rounds import Rounds
    from lit_tr.iteration.serve import Serve

__all__ = [
    "AllPairs",
    "Confidence",
    "MaxMin",
    "MaxRandom",
    "Pairing",
    "RankAgreement",
    "Rounds",
    "SelfInstruct",
    "Serve",
    "Stop",
    "Votes",
    "scored_pair",
]

__getattr__, __dir__ = lazy(
    __name__,
    {
        "confidence": ["Confidence", "RankAgreement", "Votes"],
        "figures": ["Stop"],
        "instruct": ["SelfInstruct"],
        "pairing": ["AllPairs", "MaxMin", "MaxRandom", "Pairing", "scored_pair"],
        "rounds": ["Rounds"],
        "serve": ["Serve"],
    },
)
