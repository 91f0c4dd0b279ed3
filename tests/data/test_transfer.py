import pytest
import torch

from lit_tr.data.collator import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.data.transfer import moved

PAIR = TokenizedExample([1, 2], [3, 4, 5], [6], 0.5, 0.75)


def test_tensors_of_all_types_come_in_one_buffer():
    tensors = [
        torch.tensor([True, False, True]),
        torch.empty(0, dtype=torch.long),
        torch.arange(6).view(2, 3).t(),
        torch.tensor(0.1, dtype=torch.float64),
        torch.randn(5).to(torch.bfloat16),
    ]
    parts = moved(tensors, torch.device("cpu"))
    for part, one in zip(parts, tensors, strict=True):
        assert part.dtype == one.dtype
        assert torch.equal(part, one)
    assert len({part.untyped_storage().data_ptr() for part in parts}) == 1


@pytest.mark.parametrize("packed", [True, False])
def test_all_tensors_of_a_batch_go_to_a_device_and_what_python_reads_stays(packed):
    batch = Collator(packed, mismatched=True)([PAIR, TokenizedExample([7], [8], [9])])
    there = batch.to("meta")
    before, after = list(batch.tensors()), list(there.tensors())
    assert [(one.shape, one.dtype) for one in after] == [(one.shape, one.dtype) for one in before]
    assert all(one.is_meta for one in (*after, there.labels.margin, there.input_ids, there.lengths))
    assert there.sizes is batch.sizes
    assert (type(there), len(there), there.tokens) == (type(batch), 2, batch.tokens)
    assert batch.to("cpu") is batch


def test_masks_of_attention_are_made_again_on_another_device():
    batch = Collator()([PAIR])
    assert batch.packing.mask(0, torch.float32).device.type == "cpu"
    assert batch.to("meta").packing.mask(0, torch.float32).is_meta
