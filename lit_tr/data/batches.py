"""PairBatch, packed with shared prompts or padded."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from itertools import compress, islice
from typing import Any, Self

import torch
from torch import Tensor

from lit_tr.data.groups import Packing
from lit_tr.data.transfer import ByValue

Row = tuple[list[int], list[int], list[bool] | None]  # prompt, response, which of its tokens are scored (None: all)


class Labels(ByValue):
    """Labels of responses, an attribute for each name, `(responses,)`, float32; nan where the data has none.

    Lightning casts the tensors of a batch where `trainer.precision` is `bf16-true`. It looks into mappings and
    dataclasses, and this is neither: a confidence of 0.9 stays one.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        vars(self).update(values)

    def _replaced(self, values: Mapping[str, Any]) -> "Labels":
        return Labels(values)


def known_log_probs(values: Tensor) -> Labels:
    """Return log-probs as a batch holds those that were computed ahead; Lightning does not cast them."""
    return Labels({"log_probs": values})


@dataclass
class PairBatch(ByValue):
    """Prompts with responses: the chosen responses first, then the rejected ones, then the KL rows.

    Args:
        chosen: number of preferred (desirable) responses.
        rejected: number of rejected (undesirable) responses.
        mismatched: number of KL rows, prompts with a response that is borrowed from another one, for KTO's baseline;
            None where the batch was made without them.
        paired: chosen response i and rejected response i answer the same prompt.
        lengths: scored tokens of each response, `(responses,)`, where the batch is.
        sizes: the same numbers on the CPU, for all that is split: nothing waits for a device to read them.
        labels: labels from the data: `confidence`, `margin`, and a format's own; nan for KL rows.
        dummy: a batch without examples, for a rank whose rows have ended while others go on. Its parts are empty.
        known: holds `reference_log_probs`, as exact as labels are.
        subsets: which part of the rows each example belongs to; None where no row says.
        drawn: the chunk of batches that this one was drawn in, and `index` its number in it.
    """

    chosen: int
    rejected: int
    mismatched: int | None
    paired: bool
    lengths: Tensor
    labels: Labels
    sizes: list[int] = field(kw_only=True, repr=False)
    dummy: bool = field(default=False, kw_only=True)
    known: Labels | None = field(default=None, kw_only=True, repr=False)
    subsets: list[str | None] | None = field(default=None, kw_only=True, repr=False)
    drawn: Any = field(default=None, kw_only=True, repr=False, compare=False)
    index: int = field(default=0, kw_only=True, repr=False, compare=False)

    @property
    def reference_log_probs(self) -> Tensor | None:
        """Log-probs of the scored tokens under the reference, `(scored tokens,)`, float32, where computed ahead."""
        return None if self.known is None else vars(self.known)["log_probs"]

    @property
    def tokens(self) -> list[int]:
        """Number of scored tokens of the chosen, the rejected and the KL rows."""
        sizes = iter(self.sizes)
        return [sum(islice(sizes, count)) for count in self._counts]

    @property
    def _counts(self) -> list[int]:
        return [0, 0, 0] if self.dummy else [self.chosen, self.rejected, self.mismatched or 0]

    def split(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split values of the responses, `(responses,)`, into those of the chosen, the rejected and the KL rows."""
        return _split(values, self._counts)

    def split_tokens(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split values of the scored tokens, response after response, `(scored tokens,)`, in the same way."""
        return _split(values, self.tokens)

    def split_labels(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Return the labels of the chosen, the rejected and the KL rows, by name."""
        split = {name: self.split(values) for name, values in vars(self.labels).items()}
        chosen, rejected, kl_rows = ({name: side[i] for name, side in split.items()} for i in range(3))
        return chosen, rejected, kl_rows

    def padded(self) -> "PairBatch":
        """Return the same responses in the padded layout."""
        return self

    def copied(self, **changes: Any) -> Self:
        """Return it with some attributes changed; what is computed from one of the two is not held by the other."""
        return replace(self, **changes)

    def __len__(self) -> int:
        """Number of examples: pairs, or responses where not all rows are pairs; 0 if it is a dummy."""
        if self.dummy:
            return 0
        return self.chosen if self.paired else self.chosen + self.rejected


def _split(values: Tensor, sizes: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    chosen, rejected, kl_rows = values[: sum(sizes)].split(sizes)
    return chosen, rejected, kl_rows


@dataclass
class PaddedBatch(PairBatch):
    """One response per row, after its own copy of the prompt, padded on the right to the longest.

    Args:
        input_ids: token ids, `(responses, tokens)`.
        attention_mask: 1 at tokens, 0 at padding, `(responses, tokens)`.
        predictors: for each scored token the index of the token that predicts it, among those of all rows, row after
            row, `(scored tokens,)`.
        targets: ids of the scored tokens in the same order, `(scored tokens,)`.
        ends: the index of each response's last token, among those of all rows, `(responses,)`.
        columns: columns with a token that predicts a scored one, in order, `(columns,)`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    predictors: Tensor
    targets: Tensor
    ends: Tensor
    columns: Tensor


@dataclass
class PackedBatch(PairBatch):
    """Groups of a prompt with all its responses, one after the other in one sequence, without repeated tokens.

    Args:
        input_ids: token ids, `(1, tokens)`.
        packing: the groups, and who sees whom.
        segments: group and segment id of each response.
        predictors: for each scored token the index of the token that predicts it, response after response,
            `(scored tokens,)`.
        targets: ids of the scored tokens in the same order, `(scored tokens,)`.
        ends: the index of each response's last token, `(responses,)`.
    """

    input_ids: Tensor
    packing: Packing
    segments: list[tuple[int, int]]
    predictors: Tensor
    targets: Tensor
    ends: Tensor

    def copied(self, **changes: Any) -> Self:
        """Return it with some attributes changed; masks of one of the two are not held by the other."""
        return replace(self, packing=replace(self.packing), **changes)

    def padded(self) -> PaddedBatch:
        """Return the same responses in the padded layout."""
        rows: list[Row] = []
        before = self.packing.positions[self.predictors].split(self.sizes)
        for (group, segment_id), predictors in zip(self.segments, before, strict=True):
            part = slice(*self.packing.offsets[group])
            ids, segment_ids = self.input_ids[0, part], self.packing.segment_ids[part]
            prompt, response = ids[segment_ids == 0].tolist(), ids[segment_ids == segment_id].tolist()
            scored = [False] * len(response)
            for position in predictors.tolist():
                scored[position + 1 - len(prompt)] = True
            rows.append((prompt, response, scored))
        shared = {
            one.name: getattr(self, one.name) for one in fields(PairBatch) if one.name not in ("lengths", "sizes")
        }
        return padded_batch(rows, **shared).to(self.input_ids.device)


def padded_batch(rows: list[Row], **counts: Any) -> PaddedBatch:
    """Return the padded batch of some rows."""
    shape = len(rows), max(len(prompt) + len(response) for prompt, response, _ in rows)
    input_ids = torch.zeros(shape, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    response_mask = torch.zeros(shape, dtype=torch.bool)
    for i, (prompt, response, scored) in enumerate(rows):
        end = len(prompt) + len(response)
        input_ids[i, :end] = torch.tensor(prompt + response)
        attention_mask[i, :end] = 1
        response_mask[i, len(prompt) : end] = True if scored is None else torch.tensor(scored)
    lengths, scored_at = response_mask.sum(dim=1), response_mask.flatten().nonzero()[:, 0]
    return PaddedBatch(
        **counts,
        lengths=lengths,
        sizes=lengths.tolist(),
        input_ids=input_ids,
        attention_mask=attention_mask,
        predictors=scored_at - 1,
        targets=input_ids.flatten()[scored_at],
        ends=torch.arange(shape[0]) * shape[1] + attention_mask.sum(dim=1) - 1,
        columns=response_mask.any(dim=0).nonzero()[:, 0] - 1,
    )


def packed_batch(rows: list[Row], **counts: Any) -> PackedBatch:
    """Return the packed batch of some rows."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, (prompt, *_) in enumerate(rows):
        groups.setdefault(tuple(prompt), []).append(i)
    ids: list[int] = []
    segment_ids: list[int] = []
    positions: list[int] = []
    offsets: list[tuple[int, int]] = []
    segments = [(0, 0)] * len(rows)
    predictors: list[list[int]] = [[] for _ in rows]
    ends = [0] * len(rows)
    for group, (shared, members) in enumerate(groups.items()):
        prompt, start = list(shared), len(ids)
        ids += prompt
        segment_ids += [0] * len(prompt)
        positions += range(len(prompt))
        for segment_id, i in enumerate(members, 1):
            _, response, scored = rows[i]
            before = [start + len(prompt) - 1, *range(len(ids), len(ids) + len(response) - 1)]
            predictors[i] = before if scored is None else list(compress(before, scored))
            segments[i] = group, segment_id
            ids += response
            ends[i] = len(ids) - 1
            segment_ids += [segment_id] * len(response)
            positions += range(len(prompt), len(prompt) + len(response))
        offsets.append((start, len(ids)))
    targets = [list(response if scored is None else compress(response, scored)) for _, response, scored in rows]
    sizes = [len(tokens) for tokens in targets]
    return PackedBatch(
        **counts,
        lengths=torch.tensor(sizes),
        sizes=sizes,
        input_ids=torch.tensor([ids]),
        packing=Packing(offsets, torch.tensor(segment_ids), torch.tensor(positions)),
        segments=segments,
        predictors=torch.tensor([index for indices in predictors for index in indices]),
        targets=torch.tensor([token for tokens in targets for token in tokens]),
        ends=torch.tensor(ends),
    )
