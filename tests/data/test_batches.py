import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_tr.data.batches import Collator, fill
from lit_tr.data.tokenization import TokenizedExample

IDS = st.lists(st.integers(1, 50), min_size=1, max_size=6)
PAIRS = st.lists(st.builds(TokenizedExample, IDS, IDS, IDS), min_size=1, max_size=5)


@st.composite
def scored_pairs(draw):
    """A pair of whose responses some tokens are scored, at least one in each."""
    chosen, rejected = draw(IDS), draw(IDS)
    masks = [
        draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)).filter(any)) for ids in (chosen, rejected)
    ]
    return TokenizedExample(draw(IDS), chosen, rejected, 0.5, 0.9, *masks)


LABELLED = st.builds(TokenizedExample, IDS, IDS, st.none()) | st.builds(TokenizedExample, IDS, st.none(), IDS)
EXAMPLES = PAIRS | st.lists(LABELLED, min_size=1, max_size=5)


def rows(batch):
    """Prompt and response of each row, read back from the tensors."""
    ids = [row[mask.bool()].tolist() for row, mask in zip(batch.input_ids, batch.attention_mask, strict=True)]
    lengths = batch.response_mask.sum(dim=1).tolist()
    return [(row[: len(row) - n], row[len(row) - n :]) for row, n in zip(ids, lengths, strict=True)]


@given(examples=EXAMPLES)
def test_rows_are_chosen_then_rejected_and_nothing_is_lost(examples):
    batch = Collator(packed=False)(examples)
    chosen = [(e.prompt, e.chosen) for e in examples if e.chosen]
    rejected = [(e.prompt, e.rejected) for e in examples if e.rejected]
    assert rows(batch) == chosen + rejected
    assert (batch.chosen, batch.rejected, batch.mismatched) == (len(chosen), len(rejected), None)
    assert len(batch) == len(examples)


def test_padding_by_hand():
    batch = Collator(packed=False)([TokenizedExample([1, 2], [3], [4, 5])])
    assert batch.input_ids.tolist() == [[1, 2, 3, 0], [1, 2, 4, 5]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
    assert batch.response_mask.int().tolist() == [[0, 0, 1, 0], [0, 0, 1, 1]]
    assert batch.paired


def test_mismatched_rows_take_the_response_of_the_row_before():
    pairs = [TokenizedExample([1], [10], [11]), TokenizedExample([2], [20], [21])]
    batch = Collator(packed=False, mismatched=True)(pairs)
    # rows are 1-10, 2-20, 1-11, 2-21
    assert rows(batch)[4:] == [([1], [21]), ([2], [10]), ([1], [20]), ([2], [11])]
    assert [part.tolist() for part in batch.split(batch.input_ids[:, 0])] == [[1, 2], [1, 2], [1, 2, 1, 2]]


def test_one_prompt_alone_has_no_mismatched_rows():
    batch = Collator(packed=False, mismatched=True)([TokenizedExample([1], [10], [11])])
    assert batch.mismatched == 0


def test_the_prompt_of_a_mismatched_row_is_cut_to_fit():
    pairs = [TokenizedExample([1, 2, 3, 4], [5], None), TokenizedExample([6], [7, 8, 9], None)]
    batch = Collator(packed=False, mismatched=True, max_length=5)(pairs)
    assert rows(batch)[2:] == [([3, 4], [7, 8, 9]), ([6], [5])]


def test_unpaired_rows_are_not_paired_even_in_equal_numbers():
    batch = Collator(packed=False)([TokenizedExample([1], [2], None), TokenizedExample([3], None, [4])])
    assert not batch.paired
    assert len(batch) == 2


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=60),
    budget=st.integers(50, 300),
    multiple=st.integers(1, 8),
    seed=st.integers(0, 3),
)
def test_fill_holds_each_item_once_within_the_budget(sizes, budget, multiple, seed):
    batches = fill(sizes, budget, multiple, seed)
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    assert all(0 < sum(sizes[i] for i in batch) <= budget for batch in batches)
    assert len(batches) % multiple == 0 or len(batches) == len(sizes)


def test_fill_gives_the_longest_left_to_the_smallest_batch():
    # 4 | 3, then 2 to the 3 and 2 to the 4, then 1 to the 5 that is smaller than the 6
    sizes = [1, 2, 3, 4, 2]
    assert sorted(sorted(sizes[i] for i in batch) for batch in fill(sizes, 6)) == [[1, 2, 3], [2, 4]]


def test_fill_takes_one_more_batch_where_the_fewest_would_pass_the_budget():
    sizes = [6, 5, 4, 3, 2]  # 20 in all, and no two batches of 10 come out of longest-first
    assert sorted(sorted(sizes[i] for i in batch) for batch in fill(sizes, 10)) == [[2, 5], [3, 4], [6]]


def test_scored_tokens_by_hand():
    pair = TokenizedExample([1, 2], [3, 4, 5], [6, 7], chosen_scored=[True, False, True], rejected_scored=[False, True])
    padded, packed = Collator(packed=False)([pair]), Collator()([pair])
    assert padded.input_ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 6, 7, 0]]
    assert padded.response_mask.int().tolist() == [[0, 0, 1, 0, 1], [0, 0, 0, 1, 0]]
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert packed.predictors.tolist() == [1, 3, 5]  # 2 predicts 3, 4 predicts 5, 6 predicts 7
    assert packed.targets.tolist() == [3, 5, 7]
    assert padded.lengths.tolist() == packed.lengths.tolist() == [2, 1]
    assert Collator().tokens(pair) == 7  # context takes its place as well


@given(examples=st.lists(scored_pairs(), min_size=1, max_size=4), mismatched=st.booleans())
def test_a_pack_with_context_padded_is_the_padded_batch(examples, mismatched):
    padded = Collator(packed=False, mismatched=mismatched)(examples)
    again = Collator(mismatched=mismatched)(examples).padded()
    for name, value in vars(padded).items():
        other = getattr(again, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


@pytest.mark.parametrize("packed", [True, False])
def test_labels_of_pairs_are_in_their_order(packed):
    pairs = [TokenizedExample([1], [2], [3], 0.5, 0.75), TokenizedExample([4], [5], [6], -2.0)]
    batch = Collator(packed)(pairs).to("cpu")
    assert batch.margin.dtype == batch.certainty.dtype == torch.float32
    assert (batch.margin.tolist(), batch.certainty.tolist()) == ([0.5, -2.0], [0.75, 1.0])


def test_labels_of_unpaired_rows_are_in_the_order_of_their_responses():
    rows = [
        TokenizedExample([1], None, [2], 1.0, 0.5),
        TokenizedExample([3], [4], None, 2.0, 0.25),
        TokenizedExample([5], None, [6], 3.0, 1.0),
    ]
    batch = Collator()(rows)
    assert (batch.margin.tolist(), batch.certainty.tolist()) == ([2.0, 1.0, 3.0], [0.25, 0.5, 1.0])
