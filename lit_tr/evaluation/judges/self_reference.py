"""A judge that answers itself first, and compares responses with its own answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lit_tr.evaluation.answers import Question
from lit_tr.evaluation.judges.asking import LanguageReward
from lit_tr.evaluation.judges.base import Pair
from lit_tr.evaluation.judges.llm import LLMJudge
from lit_tr.rewards.base import Candidate


@dataclass
class SelfReference(LanguageReward):
    """The probability that a response is better than the judge's own answer to the prompt.

    The judge sees both in both orders, and the mean of the two counts: a judge that always prefers what stands first
    gives 1/2 to all. A response of which one order cannot be read has no score, nor one to a prompt that the judge has
    no answer to, such as one too long for it.

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
        prompt: a prompt of pairs, as for `LLMJudge`.
        criterion: what to judge by, as for `LLMJudge`.
        max_tokens: most tokens of a judgement, as for `LLMJudge`.
        answer_tokens: most tokens of the judge's own answer, its likeliest one.

    Raises:
        UserError: an argument is not as it should be.
    """

    prompt: str = "pairwise"
    criterion: str = "overall"
    max_tokens: int = 1
    answer_tokens: int = 512

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the preference for each response in [0, 1]; NaN where it cannot be read.

        Raises:
            UserError: the judge does not answer; the same command goes on.
        """
        judge = LLMJudge(self.asker, self.criterion, self.prompt, max_tokens=self.max_tokens)
        answers = self.asker.ask([Question(_messages(one), self.answer_tokens, log_probs=False) for one in candidates])
        pairs = {
            number: Pair(one.prompt, one.response, answer.text, reference_answer=one.reference_answer)
            for number, (one, answer) in enumerate(zip(candidates, answers, strict=True))
            if answer and answer.text
        }
        preferences = {
            number: verdict.preference
            for number, verdict in zip(pairs, judge.compare([*pairs.values()]), strict=True)
            if verdict.preference is not None
        }
        return [preferences.get(number, math.nan) for number in range(len(candidates))]


def _messages(one: Candidate) -> tuple[tuple[str, str], ...]:
    if isinstance(one.prompt, str):
        return (("user", one.prompt),)
    return tuple((message["role"], str(message["content"])) for message in one.prompt)
