"""Who sees whom in a pack, against the definition told for each pair of tokens."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask
from torch.utils._python_dispatch import TorchDispatchMode

from lit_tr.data import groups
from lit_tr.data.collator import Collator
from lit_tr.data.groups import BLOCK, Packing
from lit_tr.data.tokenization import TokenizedExample

WAITS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::item", "aten::is_nonzero"}
"""Operators whose result the CPU needs, so that it waits for the device."""


class Operators(TorchDispatchMode):
    """Collects the names of the operators that run."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.name().partition(".")[0])
        return func(*args, **(kwargs or {}))


def packed(lengths):
    """A pack of groups, each given by the lengths of its prompt and its responses; a prompt may be empty."""
    segment_ids, positions, offsets = [], [], []
    for prompt, *responses in lengths:
        start = len(positions)
        segment_ids += [0] * prompt
        positions += range(prompt)
        for number, response in enumerate(responses, 1):
            segment_ids += [number] * response
            positions += range(prompt, prompt + response)
        offsets.append((start, len(positions)))
    return Packing(offsets, torch.tensor(segment_ids), torch.tensor(positions))


def by_definition(packing, window):
    """Whether each token sees each other one: of its group, before it, of the prompt or its response, in the window."""
    ids, positions = packing.segment_ids.numpy(), packing.positions.numpy()
    group = np.repeat(np.arange(len(packing.offsets)), [end - start for start, end in packing.offsets])
    query, key = np.ogrid[: len(ids), : len(ids)]
    seen = (group[query] == group[key]) & (key <= query) & ((ids[key] == 0) | (ids[key] == ids[query]))
    return seen if window is None else seen & (positions[query] - positions[key] < window)


def through_blocks(packing, window):
    """What FlexAttention lets through: what the mask says in blocks with one, all in full blocks."""
    mask, tokens = packing.block_mask(window), len(packing.positions)
    at = torch.arange(tokens)
    seen = mask.mask_mod(torch.tensor(0), torch.tensor(0), at[:, None], at[None]).numpy()
    some, full = (
        np.kron(blocks, np.ones((groups.BLOCK, groups.BLOCK), dtype=bool))[:tokens, :tokens]
        for blocks in packing.blocks(window)
    )
    assert not (some & full).any()
    return (seen & some) | full


LENGTHS = st.lists(
    st.tuples(st.integers(0, 40), st.integers(1, 40), st.integers(1, 40)) | st.tuples(st.integers(1, 60)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=150, deadline=None)
@given(lengths=LENGTHS, window=st.none() | st.integers(1, 70))
def test_blocks_and_masks_let_through_what_the_definition_does(lengths, window):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(groups, "BLOCK", 16)  # so that small packs have many blocks
        packing = packed(lengths)
        expected = by_definition(packing, window)
        assert np.array_equal(through_blocks(packing, window), expected)
        for number, (start, end) in enumerate(packing.offsets):
            added = packing.mask(number, torch.float32, window, copies=2)[0, 0].numpy()
            assert np.array_equal(added == 0, np.tile(expected[start:end, start:end], (2, 1)))


@pytest.mark.parametrize("window", [None, 50, 300])
@pytest.mark.parametrize("lengths", [[(300, 200, 100), (7, 700, 1)], [(128, 128, 128), (128, 256)], [(3, 2, 1)]])
def test_block_masks_are_those_that_torch_makes_of_all_pairs_of_tokens(lengths, window):
    ours, packing = packed(lengths).block_mask(window), packed(lengths)
    dense, tokens = torch.from_numpy(by_definition(packing, window)), len(packing.positions)
    theirs = create_block_mask(lambda b, h, q, k: dense[q, k], None, None, tokens, tokens, device="cpu")
    for name in ("kv", "full_kv", "q", "full_q"):
        counts, columns = (getattr(ours, f"{name}_{what}") for what in ("num_blocks", "indices"))
        assert torch.equal(counts, getattr(theirs, f"{name}_num_blocks")), name
        assert torch.equal(columns, getattr(theirs, f"{name}_indices")), name
    assert ours.shape == theirs.shape
    assert ours.BLOCK_SIZE == theirs.BLOCK_SIZE


def test_a_mask_is_made_once_and_goes_to_a_device_without_waiting_for_it():
    packing = packed([(300, 200, 100), (7, 700, 1)])
    with Operators() as ran:
        mask = packing.block_mask(50)
    assert not ran.names & WAITS
    assert packing.block_mask(50) is mask
    with Operators() as ran:  # what the check would find
        create_block_mask(lambda b, h, q, k: q >= k, None, None, 200, 200, device="cpu").sparsity()
    assert ran.names & WAITS


def test_a_mask_of_many_tokens_takes_memory_by_blocks_and_few_of_them_are_computed():
    some, full = packed([(3000, 500, 500)] * 33).blocks()  # 132,000 tokens: 17 GB as a matrix
    blocks = -(-132_000 // BLOCK)
    assert some.nbytes == blocks**2
    assert (some.sum() + full.sum()) * BLOCK**2 < 1.2 * 33 * (
        3500 * 3500 / 2 + 3000 * 500 + 500 * 500 / 2 + 4000 * BLOCK
    )


def test_a_pack_of_the_collator_has_its_spans():
    pairs = [TokenizedExample([5] * 20, [6] * 9, [7] * 30), TokenizedExample([8], [9], [10] * 200)]
    packing = Collator()(pairs).packing
    assert packing.spans == [
        *((0, 20, 0, 0), (20, 29, 0, 20), (29, 59, 0, 20)),
        *((59, 60, 59, 59), (60, 61, 59, 60), (61, 261, 59, 60)),
    ]
    assert packing.to("meta").spans == packing.spans
