"""Tokenized examples -> PairBatch, packed with shared prompts or padded."""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import compress
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from lit_tr.data.tokenization import TokenizedExample, cut_left

Row = tuple[list[int], list[int], list[bool] | None]  # prompt, response, which of its tokens are scored (None: all)


class ByValue:
    """Is pickled as arrays: a batch is small, and shared memory takes 0.2 ms per tensor."""

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes, tensors as arrays."""
        return {name: value.numpy() if _is_on_cpu(value) else value for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the attributes back."""
        for name, value in state.items():
            setattr(self, name, torch.from_numpy(value) if isinstance(value, np.ndarray) else value)


def _is_on_cpu(value: Any) -> bool:
    return isinstance(value, Tensor) and value.device.type == "cpu"


class Labels(ByValue):
    """Labels of responses, an attribute for each name, `(responses,)`, float32; nan where the data has none.

    Lightning casts the tensors of a batch where `trainer.precision` is `bf16-true`. It looks into mappings and
    dataclasses, and this is neither: a confidence of 0.9 stays one.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        vars(self).update(values)

    def to(self, device: torch.device | str, **kwargs: Any) -> "Labels":
        """Return the labels on a device."""
        return Labels({name: value.to(device, **kwargs) for name, value in vars(self).items()})


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
        lengths: scored tokens of each response, `(responses,)`.
        labels: labels from the data: `confidence`, `margin`, and a format's own; nan for KL rows.
        dummy: a batch without examples, for a rank whose rows have ended while others go on. Its parts are empty.
        known: holds `reference_log_probs`, as exact as labels are.
        drawn: the chunk of batches that this one was drawn in, and `index` its number in it.
    """

    chosen: int
    rejected: int
    mismatched: int | None
    paired: bool
    lengths: Tensor
    labels: Labels
    dummy: bool = field(default=False, kw_only=True)
    known: Labels | None = field(default=None, kw_only=True, repr=False)
    drawn: Any = field(default=None, kw_only=True, repr=False, compare=False)
    index: int = field(default=0, kw_only=True, repr=False, compare=False)

    def to(self, device: torch.device | str, **kwargs: Any) -> Self:
        """Return the batch on a device."""
        movable = {name: value for name, value in vars(self).items() if hasattr(value, "to")}
        return replace(self, **{name: value.to(device, **kwargs) for name, value in movable.items()})

    @property
    def reference_log_probs(self) -> Tensor | None:
        """Log-probs of the scored tokens under the reference, `(scored tokens,)`, float32, where computed ahead."""
        return None if self.known is None else vars(self.known)["log_probs"]

    def split(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split values of the responses, `(responses,)`, into those of the chosen, the rejected and the KL rows."""
        sizes = [0, 0, 0] if self.dummy else [self.chosen, self.rejected, self.mismatched or 0]
        chosen, rejected, kl_rows = values[: sum(sizes)].split(sizes)
        return chosen, rejected, kl_rows

    def split_tokens(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split values of the scored tokens, response after response, `(scored tokens,)`, in the same way."""
        sizes = [int(lengths.sum()) for lengths in self.split(self.lengths)]
        chosen, rejected, kl_rows = values[: sum(sizes)].split(sizes)
        return chosen, rejected, kl_rows

    def split_labels(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Return the labels of the chosen, the rejected and the KL rows, by name."""
        split = {name: self.split(values) for name, values in vars(self.labels).items()}
        chosen, rejected, kl_rows = ({name: side[i] for name, side in split.items()} for i in range(3))
        return chosen, rejected, kl_rows

    def __len__(self) -> int:
        """Number of examples: pairs, or responses where not all rows are pairs; 0 if it is a dummy."""
        if self.dummy:
            return 0
        return self.chosen if self.paired else self.chosen + self.rejected


@dataclass
class PaddedBatch(PairBatch):
    """One response per row, after its own copy of the prompt, padded on the right to the longest.

    Args:
        input_ids: token ids, `(responses, tokens)`.
        attention_mask: 1 at tokens, 0 at padding, `(responses, tokens)`.
        response_mask: True at the scored tokens of responses, `(responses, tokens)`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor


@dataclass
class Packing(ByValue):
    """The groups of a pack, and which tokens see which.

    A group is `[prompt | response | response ...]`: each token sees the prompt and its own response, up to itself.

    Args:
        offsets: start and end of each group.
        segment_ids: 0 at the tokens of prompts, 1, 2, ... at those of a group's responses, `(tokens,)`.
        positions: position of each token, counted from the start of its prompt, `(tokens,)`; a response goes on after
            its prompt.
    """

    offsets: list[tuple[int, int]]
    segment_ids: Tensor
    positions: Tensor
    _masks: dict[Any, Any] = field(default_factory=dict, repr=False)

    def mask(self, group: int, dtype: torch.dtype, window: int | None = None, copies: int = 1) -> Tensor:
        """Return what is added to the scores of a group: 0 where a token is seen, `(1, 1, copies * tokens, tokens)`.

        All layers share it. From a boolean mask each would make one like this, and keep it for the backward pass.

        Args:
            group: number of the group.
            dtype: that of the scores.
            window: tokens this many positions back, or more, are not seen.
            copies: how many times the mask is repeated, along the queries.
        """
        key = (group, dtype, window, copies)
        if key not in self._masks:
            start, end = self.offsets[group]
            at = torch.arange(start, end, device=self.segment_ids.device)
            hidden = ~self._sees(at[:, None], at[None], window)
            added = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            added = added.masked_fill_(hidden, torch.finfo(dtype).min)
            self._masks[key] = added.repeat(copies, 1)[None, None]
        return self._masks[key]

    def block_mask(self, window: int | None = None) -> BlockMask:
        """Return who sees whom in the pack, for FlexAttention; with a window as for `mask`."""
        if window not in self._masks:
            lengths = torch.tensor([end - start for start, end in self.offsets], device=self.segment_ids.device)
            groups = torch.arange(len(self.offsets), device=lengths.device).repeat_interleave(lengths)

            def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
                return (groups[query] == groups[key]) & self._sees(query, key, window)

            tokens = len(groups)
            self._masks[window] = create_block_mask(seen, None, None, tokens, tokens, device=str(groups.device))
        return self._masks[window]

    def _sees(self, query: Tensor, key: Tensor, window: int | None) -> Tensor:
        """Return whether one token sees another one of its group, by their indices in the pack."""
        seen = ((self.segment_ids[key] == 0) | (self.segment_ids[key] == self.segment_ids[query])) & (key <= query)
        return seen if window is None else seen & (self.positions[query] - self.positions[key] < window)

    def to(self, device: torch.device | str, **kwargs: Any) -> "Packing":
        """Return the packing on a device."""
        return Packing(self.offsets, self.segment_ids.to(device, **kwargs), self.positions.to(device, **kwargs))


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
    """

    input_ids: Tensor
    packing: Packing
    segments: list[tuple[int, int]]
    predictors: Tensor
    targets: Tensor

    def padded(self) -> PaddedBatch:
        """Return the same responses in the padded layout."""
        rows: list[Row] = []
        before = self.packing.positions[self.predictors].split(self.lengths.tolist())
        for (group, segment_id), predictors in zip(self.segments, before, strict=True):
            part = slice(*self.packing.offsets[group])
            ids, segment_ids = self.input_ids[0, part], self.packing.segment_ids[part]
            prompt, response = ids[segment_ids == 0].tolist(), ids[segment_ids == segment_id].tolist()
            scored = [False] * len(response)
            for position in predictors.tolist():
                scored[position + 1 - len(prompt)] = True
            rows.append((prompt, response, scored))
        shared = {one.name: getattr(self, one.name) for one in fields(PairBatch) if one.name != "lengths"}
        return _padded(rows, **shared).to(self.input_ids.device)


def fill(sizes: Sequence[int], budget: int, multiple: int = 1, seed: int = 0) -> list[list[int]]:
    """Split items into as few batches as keep within a budget, all of about the same size; return their indices.

    The longest item left goes to the batch that is smallest so far (Graham 1969, longest processing time first).

    Args:
        sizes: size of each item, at most `budget`.
        budget: most that the sizes of a batch may add up to.
        multiple: the number of batches is a multiple of this, as far as there are items.
        seed: decides between items of the same size.
    """
    order = torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).tolist()
    order.sort(key=lambda i: -sizes[i])
    count = -(-sum(sizes) // budget)
    while True:
        count = min(-(-count // multiple) * multiple, len(sizes))
        batches: list[list[int]] = [[] for _ in range(count)]
        heap = [(0, number) for number in range(count)]
        for i in order:
            total, number = heap[0]
            batches[number].append(i)
            heapq.heapreplace(heap, (total + sizes[i], number))
        if max(total for total, _ in heap) <= budget:
            return batches
        count += 1


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
        make = _packed if self.packed else _padded
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


def _padded(rows: list[Row], **counts: Any) -> PaddedBatch:
    shape = len(rows), max(len(prompt) + len(response) for prompt, response, _ in rows)
    input_ids = torch.zeros(shape, dtype=torch.long)
    attention_mask = torch.zeros(shape, dtype=torch.long)
    response_mask = torch.zeros(shape, dtype=torch.bool)
    for i, (prompt, response, scored) in enumerate(rows):
        end = len(prompt) + len(response)
        input_ids[i, :end] = torch.tensor(prompt + response)
        attention_mask[i, :end] = 1
        response_mask[i, len(prompt) : end] = True if scored is None else torch.tensor(scored)
    return PaddedBatch(
        **counts,
        lengths=response_mask.sum(dim=1),
        input_ids=input_ids,
        attention_mask=attention_mask,
        response_mask=response_mask,
    )


def _packed(rows: list[Row], **counts: Any) -> PackedBatch:
    groups: dict[tuple[int, ...], list[int]] = {}
    for i, (prompt, *_) in enumerate(rows):
        groups.setdefault(tuple(prompt), []).append(i)
    ids: list[int] = []
    segment_ids: list[int] = []
    positions: list[int] = []
    offsets: list[tuple[int, int]] = []
    segments = [(0, 0)] * len(rows)
    predictors: list[list[int]] = [[] for _ in rows]
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
            segment_ids += [segment_id] * len(response)
            positions += range(len(prompt), len(prompt) + len(response))
        offsets.append((start, len(ids)))
    targets = [list(response if scored is None else compress(response, scored)) for _, response, scored in rows]
    return PackedBatch(
        **counts,
        lengths=torch.tensor([len(tokens) for tokens in targets]),
        input_ids=torch.tensor([ids]),
        packing=Packing(offsets, torch.tensor(segment_ids), torch.tensor(positions)),
        segments=segments,
        predictors=torch.tensor([index for indices in predictors for index in indices]),
        targets=torch.tensor([token for tokens in targets for token in tokens]),
    )
