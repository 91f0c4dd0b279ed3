"""Sample from a policy and evaluate it."""

from lit_tr.evaluation.answering import ResponseFile
from lit_tr.evaluation.generate import Generation, generate
from lit_tr.evaluation.kl import divergences
from lit_tr.evaluation.monitor import PolicyMonitor
from lit_tr.evaluation.policies import Loading, open_policies
from lit_tr.evaluation.policy_metrics import JudgedScore, RankingAccuracy
from lit_tr.evaluation.prompts import read_prompts
from lit_tr.evaluation.rate_search import RateSearch
from lit_tr.evaluation.report import GenerationReport
from lit_tr.evaluation.responses import Response
from lit_tr.evaluation.sampling import Sampling
from lit_tr.evaluation.served import ServedPolicy

__all__ = [
    "Generation",
    "GenerationReport",
    "JudgedScore",
    "Loading",
    "PolicyMonitor",
    "RankingAccuracy",
    "RateSearch",
    "Response",
    "ResponseFile",
    "Sampling",
    "ServedPolicy",
    "divergences",
    "generate",
    "open_policies",
    "read_prompts",
]
