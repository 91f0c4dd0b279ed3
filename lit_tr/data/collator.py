"""Tokenized examples -> PairBatch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lit_tr.data.batches import Labels, PairBatch, Row, known_log_probs, packed_batch, padded_batch
from lit_tr.data.tokenization import TokenizedExample


@dataclass(frozen=True)
class Collator:
    """Makes batches of examples.

    Args:
        packed: pack the responses after shared prompts; False pads them.
        mismatched: add KTO's KL rows: each prompt with the response of the row before it, as the KTO paper
            (arXiv 2402.01306, Sec. 4.1) and TRL form them; one whose borrowed response is to the same prompt is left
            out.
        max_length: most tokens of a prompt with a borrowed response, which is truncated on the right, as TRL does.
    """

    packed: bool = True
    mismatched: bool = False
    max_length: int | None = None

    def __call__(self, rows: Sequence[TokenizedExample | None]) -> PairBatch:
        """Return the batch of some examples; a dummy batch where there is none but None, which stands for no row."""
        examples = [row for row in rows if row is not None]
        if not examples:
            return replace(self([DUMMY]), dummy=True)
        chosen = [(e.prompt, e.chosen, e.chosen_scored) for e in examples if e.chosen is not None]
        rejected = [(e.prompt, e.rejected, e.rejected_scored) for e in examples if e.rejected is not None]
        ahead = [e.ahead for e in examples if e.ahead is not None]
        mismatched = self._mismatched(chosen + rejected) if self.mismatched else []
        if self.mismatched and ahead:
            mismatched = [(row.prompt, *row.masked[0]) for one in ahead for row in one.kl_rows]
        make = packed_batch if self.packed else padded_batch
        return make(
            chosen + rejected + mismatched,
            chosen=len(chosen),
            rejected=len(rejected),
            mismatched=len(mismatched) if self.mismatched else None,
            paired=len(chosen) == len(rejected) == len(examples),
            labels=_labels(examples, len(mismatched)),
            subsets=[e.subset for e in examples] if any(e.subset for e in examples) else None,
            known=known_log_probs(_log_probs_ahead(examples, self.mismatched)) if ahead else None,
        )

    def kl_rows(self, examples: list[TokenizedExample]) -> list[list[TokenizedExample]]:
        """Return the KL rows of each example of a whole set: its prompt with the responses of the one before it."""
        before = zip(examples, examples[-1:] + examples[:-1], strict=True)
        return [
            [self._kl_row(e.prompt, *row) for row in other.masked] if e.prompt != other.prompt else []
            for e, other in before
        ]

    def _kl_row(self, prompt: list[int], *response: Any) -> TokenizedExample:
        ids, scored = self._lent(prompt, *response)
        return TokenizedExample(prompt, ids, None, chosen_scored=scored)

    def tokens(self, example: TokenizedExample) -> int:
        """Return the most tokens that an example takes in a pack, whatever examples it is with."""
        responses = sum(map(len, example.responses))
        return self.sizes(len(example.prompt), responses, responses)

    def sizes(self, prompts: Any, responses: Any, lent: Any) -> Any:
        """Return the same of many examples, `(examples,)`.

        Args:
            prompts: tokens of each prompt, `(examples,)`.
            responses: tokens of its responses, together.
            lent: tokens of the responses in its KL rows.
        """
        return prompts + responses + (lent if self.mismatched else 0)

    def _mismatched(self, rows: list[Row]) -> list[Row]:
        pairs = zip(rows, rows[-1:] + rows[:-1], strict=True)
        return [(row[0], *self._lent(row[0], *other[1:])) for row, other in pairs if row[0] != other[0]]

    def _lent(
        self, prompt: list[int], response: list[int], scored: list[bool] | None
    ) -> tuple[list[int], list[bool] | None]:
        room = len(response) if self.max_length is None else self.max_length - len(prompt)
        return response[:room], None if scored is None else scored[:room]


DUMMY = TokenizedExample([0], [0], [0])
"""The example of a dummy batch: every vocabulary has its tokens."""


def _log_probs_ahead(examples: list[TokenizedExample], with_kl_rows: bool) -> Tensor:
    """Return the precomputed log-probs of the chosen, the rejected and the KL rows, `(scored tokens,)`."""
    known = [(e, e.ahead) for e in examples if e.ahead is not None]
    chosen = [ahead.log_probs[0] for e, ahead in known if e.chosen is not None]
    rejected = [ahead.log_probs[-1] for e, ahead in known if e.rejected is not None]
    kl_rows = [one for _, ahead in known for one in ahead.kl_log_probs] if with_kl_rows else []
    return torch.cat([*chosen, *rejected, *kl_rows])


def _labels(examples: list[TokenizedExample], kl_rows: int) -> Labels:
    """Return the labels of the chosen responses, the rejected ones and the KL rows."""
    of_each = [{"confidence": (e.confidence,) * 2, "margin": (e.margin,) * 2, **e.labels} for e in examples]
    values: dict[str, Tensor] = {}
    for name in sorted(set().union(*of_each)):
        pairs = [labels.get(name, (math.nan, math.nan)) for labels in of_each]
        chosen = [pair[0] for pair, e in zip(pairs, examples, strict=True) if e.chosen is not None]
        rejected = [pair[1] for pair, e in zip(pairs, examples, strict=True) if e.rejected is not None]
        values[name] = torch.tensor(chosen + rejected + [math.nan] * kl_rows, dtype=torch.float32)
    return Labels(values)
