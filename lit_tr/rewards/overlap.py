"""How many words a response shares with a reference answer."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from lit_tr.errors import UserError
from lit_tr.rewards.base import Candidate, reference_answers


@dataclass(frozen=True)
class Overlap:
    """BLEU or ROUGE-L of a response against its reference answer, in [0, 1].

    Args:
        measure: `bleu` is the BLEU-4 of a sentence by sacrebleu (Papineni et al. 2002, with its effective order and
            exponential smoothing; as a reward: BLEUBERI, arXiv 2505.11080). `rouge_l` is `rouge_l`.

    Raises:
        UserError: there is no such measure, or sacrebleu is not installed.
    """

    measure: Literal["bleu", "rouge_l"] = "bleu"

    def __post_init__(self) -> None:
        if self.measure not in ("bleu", "rouge_l"):
            raise UserError(f"Overlap: measure is bleu or rouge_l, not {self.measure!r}")
        self._function()

    @property
    def name(self) -> str:
        """The measure."""
        return self.measure

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the measure for each response; NaN where there is no reference answer.

        Raises:
            UserError: no row has a reference answer.
        """
        answers, function = reference_answers(self.name, candidates), self._function()
        both = zip(candidates, answers, strict=True)
        return [math.nan if answer is None else function(one.response, answer) for one, answer in both]

    def _function(self) -> Callable[[str, str], float]:
        if self.measure == "rouge_l":
            return rouge_l
        try:
            from sacrebleu.metrics import BLEU
        except ModuleNotFoundError as error:
            raise UserError("BLEU needs sacrebleu: pip install 'lit-tr[evaluation]'") from error
        bleu = BLEU(effective_order=True)
        return lambda response, answer: bleu.sentence_score(response, [answer]).score / 100


def rouge_l(response: str, answer: str) -> float:
    """Return the ROUGE-L of two texts (Lin 2004): the F1 of their longest common subsequence of words, in lower case.

    Examples:
        >>> rouge_l("The river is icy.", "the cold river is very icy")  # 4 words in common, of 4 and of 6
        0.8
    """
    ours, theirs = (re.findall(r"\w+", text.lower()) for text in (response, answer))
    common = _common_subsequence(ours, theirs)
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def _common_subsequence(ours: Sequence[str], theirs: Sequence[str]) -> int:
    """Return the length of the longest common subsequence, in memory of one row."""
    row = [0] * (len(theirs) + 1)
    for one in ours:
        above = row
        row = [0]
        for i, other in enumerate(theirs):
            row.append(above[i] + 1 if one == other else max(above[i + 1], row[i]))
    return row[-1]
