"""Tokenized examples -> PairBatch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lit_tr.data.tokenization import TokenizedExample, cut_left


@dataclass
class PairBatch:
    """Prompts with responses, one a row: the chosen ones first, then the rejected ones, then the mismatched ones.

    Args:
        input_ids: token ids, prompt then response then padding, `(rows, tokens)`.
        attention_mask: 1 at tokens, 0 at padding, `(rows, tokens)`.
        response_mask: True at the tokens of responses, `(rows, tokens)`.
        chosen: number of rows with a preferred (desirable) response.
        rejected: number of rows with a rejected (undesirable) response.
        mismatched: number of rows whose response is borrowed from another prompt, for KTO's KL baseline; None where the
            batch was made without them.
        paired: chosen row i and rejected row i answer the same prompt.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor
    chosen: int
    rejected: int
    mismatched: int | None
    paired: bool

    def to(self, device: torch.device | str, **kwargs: Any) -> "PairBatch":
        """Return the batch on a device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **{name: tensor.to(device, **kwargs) for name, tensor in tensors.items()})  # type: ignore[arg-type]

    def split(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Part values of the rows, `(rows,)`, into those of the chosen, the rejected and the mismatched rows."""
        chosen, rejected, mismatched = values.split([self.chosen, self.rejected, self.mismatched or 0])
        return chosen, rejected, mismatched

    def __len__(self) -> int:
        """Number of examples: pairs, or rows of unpaired data."""
        return self.chosen if self.paired else self.chosen + self.rejected


@dataclass(frozen=True)
class PaddedCollator:
    """Puts examples into rows padded on the right to the longest.

    Args:
        pad_id: id of the padding token; padding is masked, so any id will do.
        mismatched: add KTO's mismatched rows: each prompt with the response of the row before it, as the KTO paper
            (arXiv 2402.01306, Sec. 4.1) and TRL form them; a row whose borrowed response is to the same prompt is left
            out.
        max_length: most tokens of a mismatched row; its prompt is cut on the left to fit.
        bos_id: id of the tokenizer's beginning-of-sequence token, which such a cut keeps.
    """

    pad_id: int
    mismatched: bool = False
    max_length: int | None = None
    bos_id: int | None = None

    def __call__(self, examples: Sequence[TokenizedExample]) -> PairBatch:
        """Return the batch of some examples."""
        chosen = [(e.prompt, e.chosen) for e in examples if e.chosen is not None]
        rejected = [(e.prompt, e.rejected) for e in examples if e.rejected is not None]
        mismatched = self._mismatched(chosen + rejected) if self.mismatched else []
        return PairBatch(
            **_pad(chosen + rejected + mismatched, self.pad_id),
            chosen=len(chosen),
            rejected=len(rejected),
            mismatched=len(mismatched) if self.mismatched else None,
            paired=len(chosen) == len(rejected) == len(examples),
        )

    def _mismatched(self, rows: list[tuple[list[int], list[int]]]) -> list[tuple[list[int], list[int]]]:
        borrowed = [(prompt, *other) for (prompt, _), other in zip(rows, rows[-1:] + rows[:-1], strict=True)]
        return [(self._cut(prompt, response), response) for prompt, owner, response in borrowed if prompt != owner]

    def _cut(self, prompt: list[int], response: list[int]) -> list[int]:
        return prompt if self.max_length is None else cut_left(prompt, self.max_length - len(response), self.bos_id)


def _pad(rows: list[tuple[list[int], list[int]]], pad_id: int) -> dict[str, Tensor]:
    shape = len(rows), max(len(prompt) + len(response) for prompt, response in rows)
    input_ids = torch.full(shape, pad_id)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    response_mask = torch.zeros(shape, dtype=torch.bool)
    for i, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        input_ids[i, :end] = torch.tensor(prompt + response)
        attention_mask[i, :end] = 1
        response_mask[i, len(prompt) : end] = True
    return {"input_ids": input_ids, "attention_mask": attention_mask, "response_mask": response_mask}
