"""Tokenized examples -> PairBatch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_tr.data.batches import Labels, PairBatch, Row, known_log_probs, packed_batch, padded_batch
from lit_tr.data.tokenization import TokenizedExample, cut_left


@dataclass(frozen=True)
class Collator:
    """Makes batches of examples.

    Args:
        packed: pack the responses after shared prompts; False pads them.
        mismatched: add KTO's KL rows: each prompt with the response of the row before it, as the KTO paper
            (arXiv 2402.01306, Sec. 4.1) and TRL form them; one whose borrowed response is to the same prompt is left
            out.
        max_length: most tokens of a prompt with a borrowed response; the prompt is cut on the left to fit.
        bos_id: id of the tokenizer's beginning-of-sequence token, which such a cut keeps.
    """

    packed: bool = True
    mismatched: bool = False
    max_length: int | None = None
    bos_id: int | None = None

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
            mismatched = [(row.prompt, *_rows(row)[0]) for one in ahead for row in one.kl_rows]
        make = packed_batch if self.packed else padded_batch
        return make(
            chosen + rejected + mismatched,
            chosen=len(chosen),
            rejected=len(rejected),
            mismatched=len(mismatched) if self.mismatched else None,
            paired=len(chosen) == len(rejected) == len(examples),
            labels=_labels(examples, len(mismatched)),
            known=known_log_probs(_log_probs_ahead(examples, self.mismatched)) if ahead else None,
        )

    def kl_rows(self, examples: list[TokenizedExample]) -> list[list[TokenizedExample]]:
        """Return the KL rows of each example of a whole set: its prompt with the responses of the one before it."""
        before = zip(examples, examples[-1:] + examples[:-1], strict=True)
        return [
            [self._lent(e, *row) for row in _rows(other)] if e.prompt != other.prompt else [] for e, other in before
        ]

    def _lent(self, example: TokenizedExample, ids: list[int], scored: list[bool] | None) -> TokenizedExample:
        return TokenizedExample(self._cut(example.prompt, ids), ids, None, chosen_scored=scored)

    def tokens(self, example: TokenizedExample) -> int:
        """Return how many tokens of a pack an example takes.

        Responses that are lent to another prompt count twice; a prompt that must be cut for one does not.
        """
        return len(example.prompt) + sum(map(len, example.responses)) * (2 if self.mismatched else 1)

    def _mismatched(self, rows: list[Row]) -> list[Row]:
        pairs = zip(rows, rows[-1:] + rows[:-1], strict=True)
        return [(self._cut(row[0], other[1]), *other[1:]) for row, other in pairs if row[0] != other[0]]

    def _cut(self, prompt: list[int], response: list[int]) -> list[int]:
        return prompt if self.max_length is None else cut_left(prompt, self.max_length - len(response), self.bos_id)


DUMMY = TokenizedExample([0], [0], [0])
"""The example of a dummy batch: every vocabulary has its tokens."""


def _rows(example: TokenizedExample) -> list[tuple[list[int], list[bool] | None]]:
    both = (example.chosen, example.chosen_scored), (example.rejected, example.rejected_scored)
    return [(ids, scored) for ids, scored in both if ids is not None]


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
