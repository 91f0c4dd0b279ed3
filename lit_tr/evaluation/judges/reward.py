"""A language model's rating of a response as a reward."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from lit_tr.errors import UserError
from lit_tr.evaluation.judges.asking import LanguageReward
from lit_tr.evaluation.judges.llm import OPTIONAL, SCORE_SLOTS, LLMScorer
from lit_tr.evaluation.judges.templates import template
from lit_tr.rewards.base import Candidate, Features


@dataclass
class JudgeReward(LanguageReward):
    """The mean of several ratings by a language model (Self-Rewarding Language Models, arXiv 2401.10020, Sec. 2.2).

    A judgement that cannot be read does not count. A response none of whose judgements can be read has no score: it is
    not the worst one.

    Args:
        path: as for `LanguageReward`, and so on up to `key_variable`.
        model: as for `LanguageReward`.
        url: as for `LanguageReward`.
        cache: as for `LanguageReward`.
        device: as for `LanguageReward`.
        dtype: as for `LanguageReward`.
        quantize: as for `LanguageReward`.
        batch_size: as for `LanguageReward`.
        concurrency: as for `LanguageReward`.
        key_variable: as for `LanguageReward`.
        prompt: a name of `lit_tr/evaluation/judges/prompts`, or a file's path, with the slots {prompt} and {response}.
            It may have {criterion} and {reference}.
        criterion: what to judge by, where the prompt has {criterion}.
        lowest: least rating that the prompt asks for.
        highest: greatest rating.
        judgements: ratings of each response that are drawn and averaged.
        temperature: of the judgements.
        top_p: draw them from the likeliest tokens that together have at least this probability.
        max_tokens: most tokens of a judgement. With 1, and ratings below 10, it is the mean over the digits'
            probabilities as first token: a model that is too small for the form of an answer is still read.

    Raises:
        UserError: an argument is not as it should be.
    """

    prompt: str = "additive"
    criterion: str = "overall"
    lowest: int = 0
    highest: int = 5
    judgements: int = 3
    temperature: float = 0.7
    top_p: float = 0.9
    max_tokens: int = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        template(self.prompt, SCORE_SLOTS, OPTIONAL)
        if self.judgements < 1:
            raise UserError(f"JudgeReward: judgements must be at least 1, not {self.judgements}")
        if self.judgements > 1 and (self.max_tokens == 1 or not self.temperature):
            raise UserError(
                "JudgeReward: with temperature 0 or max_tokens 1 all judgements of a response are the same: give "
                "judgements 1"
            )

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the mean rating of each response; NaN where no judgement can be read.

        Raises:
            UserError: the judge does not answer; the same command goes on.
        """
        return [one["score"] for one in self.explain(candidates)]

    def explain(self, candidates: Sequence[Candidate]) -> list[Features]:
        """Return the scores, and the number of judgements of each response that cannot be read, as `unread`.

        Raises:
            UserError: the judge does not answer; the same command goes on.
        """
        how = (self.lowest, self.highest, self.max_tokens, self.temperature)
        scorer = LLMScorer(self.asker, self.criterion, self.prompt, *how, top_p=self.top_p)
        ratings = [replace(scorer, draw=draw).score(candidates) for draw in range(self.judgements)]
        return [_features(of_one) for of_one in zip(*ratings, strict=True)]


def _features(ratings: Sequence[float]) -> Features:
    read = [rating for rating in ratings if not math.isnan(rating)]
    return {"score": fmean(read) if read else math.nan, "unread": float(len(ratings) - len(read))}
