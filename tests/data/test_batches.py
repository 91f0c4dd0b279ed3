import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.plugins.precision import HalfPrecision

from lit_tr.data.collator import Collator
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
    return [(row[: len(row) - n], row[len(row) - n :]) for row, n in zip(ids, batch.sizes, strict=True)]


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
    assert batch.predictors.tolist() == [1, 5, 6]  # 4 to 7 are in the second row
    assert batch.targets.tolist() == [3, 4, 5]
    assert batch.ends.tolist() == [2, 7]
    assert batch.columns.tolist() == [1, 2]
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


def test_a_borrowed_response_is_truncated_as_trl_does():
    pairs = [TokenizedExample([1, 2, 3, 4], [5], None), TokenizedExample([6], [7, 8, 9], None)]
    batch = Collator(packed=False, mismatched=True, max_length=5)(pairs)
    assert rows(batch)[2:] == [([1, 2, 3, 4], [7]), ([6], [5])]


def test_unpaired_rows_are_not_paired_even_in_equal_numbers():
    batch = Collator(packed=False)([TokenizedExample([1], [2], None), TokenizedExample([3], None, [4])])
    assert not batch.paired
    assert len(batch) == 2


def test_scored_tokens_by_hand():
    pair = TokenizedExample([1, 2], [3, 4, 5], [6, 7], chosen_scored=[True, False, True], rejected_scored=[False, True])
    padded, packed = Collator(packed=False)([pair]), Collator()([pair])
    assert padded.input_ids.tolist() == [[1, 2, 3, 4, 5], [1, 2, 6, 7, 0]]
    assert padded.predictors.tolist() == [1, 3, 7]
    assert padded.targets.tolist() == [3, 5, 7]
    assert padded.columns.tolist() == [1, 2, 3]
    assert packed.input_ids.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert packed.predictors.tolist() == [1, 3, 5]  # 2 predicts 3, 4 predicts 5, 6 predicts 7
    assert packed.targets.tolist() == [3, 5, 7]
    assert (padded.ends.tolist(), packed.ends.tolist()) == ([4, 8], [4, 6])
    assert padded.lengths.tolist() == packed.lengths.tolist() == padded.sizes == packed.sizes == [2, 1]
    assert Collator().tokens(pair) == 7  # context takes its place as well


@given(examples=st.lists(scored_pairs(), min_size=1, max_size=4), mismatched=st.booleans())
def test_a_pack_with_context_padded_is_the_padded_batch(examples, mismatched):
    padded = Collator(packed=False, mismatched=mismatched)(examples)
    again = Collator(mismatched=mismatched)(examples).padded()
    for name, value in vars(padded).items():
        other = getattr(again, name)
        if name == "labels":
            value, other = (torch.stack(list(vars(labels).values())).nan_to_num(-1) for labels in (value, other))
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


PAIR = TokenizedExample([1], [2], [3], 0.5, 0.75)
DESIRABLE, UNDESIRABLE = TokenizedExample([3], [4], None, 2.0, 0.25), TokenizedExample([5], None, [6], 3.0, 0.9)


def lists(labels):
    return [{name: [round(v, 6) for v in values.tolist()] for name, values in side.items()} for side in labels]


@pytest.mark.parametrize("packed", [True, False])
def test_labels_are_of_responses_and_pairs_and_unpaired_rows_go_together(packed):
    batch = Collator(packed)([UNDESIRABLE, PAIR, DESIRABLE])
    assert (batch.chosen, batch.rejected, batch.paired, len(batch)) == (2, 2, False, 4)
    chosen, rejected, kl_rows = lists(batch.split_labels())
    assert chosen == {"confidence": [0.75, 0.25], "margin": [0.5, 2.0]}
    assert rejected == {"confidence": [0.9, 0.75], "margin": [3.0, 0.5]}
    assert kl_rows == {"confidence": [], "margin": []}


def test_kl_rows_have_no_labels():
    batch = Collator(mismatched=True)([PAIR, DESIRABLE])
    chosen, rejected, kl_rows = batch.split_labels()
    assert (chosen["margin"].tolist(), rejected["margin"].tolist()) == ([0.5, 2.0], [0.5])
    assert len(kl_rows["margin"]) == batch.mismatched > 0
    assert kl_rows["margin"].isnan().all()


def test_any_label_of_a_format_is_one_of_the_batch_and_nan_where_a_row_has_none():
    rows = [replace(PAIR, labels={"score": (4.0, 1.5)}), DESIRABLE, replace(UNDESIRABLE, labels={"score": (0.0, 2.5)})]
    batch = Collator()(rows)
    assert batch.labels.score.nan_to_num(-1).tolist() == [4.0, -1.0, 1.5, 2.5]
    assert batch.labels.score.dtype == batch.labels.margin.dtype == torch.float32


@pytest.mark.parametrize("packed", [True, False])
def test_subsets_are_of_examples(packed):
    batch = Collator(packed)([replace(PAIR, subset="math"), replace(PAIR, prompt=[9])])
    assert batch.subsets == batch.padded().subsets == pickle.loads(pickle.dumps(batch)).subsets == ["math", None]
    assert Collator(packed)([PAIR]).subsets is None


@pytest.mark.parametrize("carry", [lambda batch: pickle.loads(pickle.dumps(batch)), lambda batch: batch.to("cpu")])
def test_labels_travel_with_the_batch(carry):
    batch = Collator()([replace(PAIR, labels={"score": (4.0, 1.5)})])
    for before, now in ((batch, carry(batch)), (batch.padded(), carry(batch).padded())):
        assert vars(now.labels).keys() == {"confidence", "margin", "score"}
        assert all(torch.equal(getattr(now.labels, name), value) for name, value in vars(before.labels).items())


def test_bfloat16_rounds_no_label():
    batch = Collator(packed=False)([UNDESIRABLE])
    cast = HalfPrecision("bf16-true").convert_input([batch, torch.tensor(0.9)])
    assert cast[1].dtype == torch.bfloat16
    assert torch.equal(cast[0].labels.confidence, torch.tensor([0.9]))
    assert torch.equal(cast[0].to("cpu").split_labels()[1]["confidence"], torch.tensor([0.9]))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("mismatched", [True, False])
def test_without_rows_there_is_a_dummy_batch_of_the_same_kind(packed, mismatched):
    collate = Collator(packed, mismatched)
    dummy, batch = collate([None, None]), collate([PAIR, None])
    assert (dummy.dummy, batch.dummy) == (True, False)
    assert (len(dummy), len(batch)) == (0, 1)
    assert type(dummy) is type(batch)
    assert (dummy.paired, dummy.mismatched is None) == (True, batch.mismatched is None)
    responses = torch.ones(len(dummy.lengths), requires_grad=True)
    parts = dummy.split(responses)
    assert [len(part) for part in parts] == [0, 0, 0]
    assert torch.equal(
        torch.autograd.grad(sum(part.sum() for part in parts), responses)[0], torch.zeros_like(responses)
    )
    assert all(len(values) == 0 for side in dummy.split_labels() for values in side.values())
    assert dummy.input_ids.numel() > 0  # something to run the model on


def test_values_of_tokens_are_split_as_the_responses_are():
    pairs = [TokenizedExample([1], [2, 3], [4]), TokenizedExample([5], [6], [7, 8, 9])]
    batch = Collator(mismatched=True)(pairs)
    assert batch.tokens == [3, 4, 7]
    chosen, rejected, kl_rows = batch.split_tokens(batch.targets)
    assert (chosen.tolist(), rejected.tolist()) == ([2, 3, 6], [4, 7, 8, 9])
    assert kl_rows.tolist() == [7, 8, 9, 2, 3, 6, 4]  # each prompt with the response of the row before
    assert [len(part) for part in Collator()([]).split_tokens(torch.ones(2))] == [0, 0, 0]
