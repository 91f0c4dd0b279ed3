"""Metrics of a policy on held-out rows: what a search over averages maximizes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, ClassVar

from lit_tr.data.process import RowProcessor
from lit_tr.data.rows import Source
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.errors import BadRowError, UserError
from lit_tr.evaluation.generate import generate
from lit_tr.evaluation.held_out import no_reference, score
from lit_tr.evaluation.policies import context_of
from lit_tr.evaluation.prompts import Reader, read_prompts
from lit_tr.policy.adapters import causal_model
from lit_tr.policy.logprobs import response_log_probs
from lit_tr.rewards import Candidate, Reward, as_scorer

Metric = Callable[[Any, Any, Source | None], float | Sequence[float]]
"""From a causal language model, its tokenizer and held-out rows to a value, or a value for each row; higher is better.

The model has Hugging Face's interface, and is in evaluation mode without gradient. Of values for each row the mean is
taken, and its standard error is known. `needs_rows = True` says that there must be rows.
"""


@dataclass(frozen=True)
class JudgedScore:
    """A judge's scores of responses that are sampled from the policy, one to each prompt.

    Args:
        judge: scores responses: a function from a prompt and a response to a number, such as
            `lit_tr.embedded.task.GoldReward`, or a reward of `lit_tr.rewards`.
        prompts: how many of the rows' prompts are sampled from, the first.
        max_new_tokens: most tokens of a response.
        seed: seed of the samples; each policy gets the same random numbers.

    Raises:
        UserError: a number is below 1.
    """

    judge: Reward
    prompts: int = 200
    max_new_tokens: int = 96
    seed: int = 0

    needs_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if min(self.prompts, self.max_new_tokens) < 1:
            raise UserError("JudgedScore: prompts and max_new_tokens must be at least 1")

    def __call__(self, model: Any, tokenizer: Any, rows: Source) -> list[float]:
        """Return the score of each response; nan where the judge has none."""
        context = context_of(causal_model(model).config)
        reader = Reader(tokenizer, None if context is None else context - self.max_new_tokens)
        prompts = read_prompts(rows, reader, self.prompts).found
        samples = generate(model, tokenizer, [one.ids for one in prompts], self.max_new_tokens, seed=self.seed)
        both = zip(prompts, samples, strict=True)
        candidates = [Candidate(one.shown, sample.text, one.reference_answer, one.kind) for one, sample in both]
        return as_scorer(self.judge).score(candidates)


@dataclass(frozen=True)
class RankingAccuracy:
    """Whether the policy finds the chosen response of a pair likelier than the rejected one; 1/2 for a tie.

    It is the ranking accuracy of Chen et al. 2024 (arXiv 2405.19534), by the log-probs of whole responses. It needs no
    reference, unlike the accuracy of the implicit reward.

    Args:
        pairs: how many of the rows are scored, the first.
        max_length: most tokens of a prompt and one response.

    Raises:
        UserError: `pairs` is below 1.
    """

    pairs: int = 500
    max_length: int = 1024

    needs_rows: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.pairs < 1:
            raise UserError("RankingAccuracy: pairs must be at least 1")

    def __call__(self, model: Any, tokenizer: Any, rows: Source) -> list[float]:
        """Return 1, 1/2 or 0 for each pair; rows that are none, or are too long, are left out."""
        pairs = list(islice(self._pairs(tokenizer, rows), self.pairs))
        if not pairs:
            raise UserError(f"RankingAccuracy: {rows} has no pair that can be scored; give other rows")
        chosen, rejected = score(pairs, partial(response_log_probs, model), no_reference, model.device)
        return (((chosen.policy - rejected.policy).sign() + 1) / 2).tolist()

    def _pairs(self, tokenizer: Any, rows: Source) -> Iterator[TokenizedExample]:
        read = RowProcessor(tokenizer, self.max_length)
        for record in rows.records():
            with suppress(BadRowError):
                yield from (one for one in read(record) if one.chosen is not None and one.rejected is not None)
