"""The groups of a pack, and who sees whom in it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from lit_tr.data.transfer import ByValue


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
    _masks: dict[Any, Any] = field(default_factory=dict, init=False, repr=False)

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
