import copy

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from lit_tr.errors import UserError
from lit_tr.policy import PretrainedPolicy
from lit_tr.reference import CopyReference
from tests.reference.by_hand import BATCH, moved, policy_log_probs


def apply(reference, **options):
    """Move or cast a reference as a strategy does with the module."""
    reference._apply(lambda tensor: tensor.to(**options) if tensor.is_floating_point() else tensor.to("cpu"))


def prepared(policy, **arguments):
    reference = CopyReference(**arguments)
    reference.prepare(policy)
    return reference


@pytest.mark.parametrize("average", ["low_order_bits", "master"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_copy_in_half_precision_follows_as_float32_would_and_saves_what_that_takes(llama_dir, dtype, average):
    policy = PretrainedPolicy(llama_dir, dtype=dtype).load()
    reference, twin = prepared(policy, average=average), prepared(policy, dtype="float32")
    moved(policy)
    for _ in range(20):
        reference.update(policy, 0.01)
        twin.update(policy, 0.01)
    restored = prepared(policy, average=average)
    assert restored.load_state_dict(reference.state_dict()) == []
    assert reference.state_dict().keys() == restored.state_dict().keys()
    for _ in range(20):
        restored.update(policy, 0.01)
        twin.update(policy, 0.01)
    for ours, theirs in zip(restored.model.parameters(), twin.model.parameters(), strict=True):
        assert ours.dtype == getattr(torch, dtype)
        assert torch.equal(ours, theirs.to(ours))
    kept = [value for name, value in restored.state_dict().items() if name.startswith("averaged.")]
    assert {value.dtype for value in kept} == {
        torch.int16 if (dtype, average) == ("bfloat16", "low_order_bits") else torch.float32
    }


def test_names_in_the_state_are_paths_of_attributes(llama_dir):
    """As torch's distributed checkpoints walk them."""
    policy = PretrainedPolicy(llama_dir, dtype="bfloat16").load()
    reference = prepared(policy)
    reference.update(policy, 0.5)
    state = reference.state_dict()
    assert any(name.startswith("averaged.") for name in state)
    for name, value in state.items():
        found = reference
        for part in name.split("."):
            found = getattr(found, part)
        assert torch.equal(found, value)


def test_hard_updates_and_alpha_0_hold_no_average(llama_dir):
    policy = PretrainedPolicy(llama_dir, dtype="bfloat16").load()
    reference = prepared(policy)
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    moved(policy)
    reference.update(policy, 0.0)
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())
    reference.update(policy, 1.0)
    assert reference.state_dict().keys() == before.keys()
    assert torch.equal(reference.log_probs(policy, BATCH), policy_log_probs(policy))
    reference.update(policy, 0.5)
    assert len(reference.state_dict()) > len(before)


def test_a_state_without_an_average_ends_the_one_that_was(llama_dir):
    policy = PretrainedPolicy(llama_dir, dtype="bfloat16").load()
    before, reference = prepared(policy), prepared(policy)
    moved(policy)
    reference.update(policy, 0.01)
    assert reference.load_state_dict(before.state_dict()) == []
    assert reference.state_dict().keys() == before.state_dict().keys()


def test_a_copy_may_be_held_in_a_lower_precision_and_elsewhere(llama_dir):
    policy = PretrainedPolicy(llama_dir).load()
    reference = prepared(policy, average="plain", dtype="bfloat16", device="cpu")
    assert {param.dtype for param in reference.model.parameters()} == {torch.bfloat16}
    assert not reference.state_dict().keys() - {f"model.{key}" for key in reference.model.state_dict()}
    moved(policy)
    reference.update(policy, 1.0)
    torch.testing.assert_close(reference.log_probs(policy, BATCH), policy_log_probs(policy), rtol=0.02, atol=0.1)
    apply(reference, device="meta")
    assert {param.device.type for param in reference.model.parameters()} == {"cpu"}


def test_a_copy_with_a_precision_of_its_own_is_moved_and_not_cast(llama_dir):
    policy = PretrainedPolicy(llama_dir, dtype="float32").load()
    for arguments, dtype in (({"dtype": "float32"}, torch.float32), ({}, torch.bfloat16)):
        reference = prepared(policy, **arguments)
        apply(reference, device="meta", dtype=torch.bfloat16)
        held = {(param.device.type, param.dtype) for param in reference.model.parameters()}
        assert held == {("meta", dtype)}


@pytest.mark.parametrize("device", [None, "cpu"])
def test_master_weights_of_a_bfloat16_copy_are_never_cast_and_may_stay_elsewhere(llama_dir, device):
    policy = PretrainedPolicy(llama_dir, dtype="bfloat16").load()
    reference = prepared(policy, average="master", average_device=device)
    twin = prepared(policy, dtype="float32")
    moved(policy)
    for _ in range(10):
        reference.update(policy, 0.001)
        twin.update(policy, 0.001)
    apply(reference, dtype=torch.bfloat16)
    for name, param in twin.model.named_parameters():
        assert torch.equal(reference.averaged.of(name), param)
        assert torch.equal(reference.model.get_parameter(name), param.bfloat16())
    apply(reference, device="meta")
    assert {value.device.type for value in vars(reference.averaged.kept).values()} == {device or "meta"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_copy_in_4_bits_is_the_policy_rounded_as_bitsandbytes_rounds(llama_dir, dtype):
    policy = PretrainedPolicy(llama_dir, dtype=dtype).load()
    reference = CopyReference(dtype="nf4")
    reference.prepare(policy)
    reference.update(moved(policy), 1.0)
    rounded = copy.deepcopy(policy)
    for module in rounded.modules():
        if isinstance(module, torch.nn.Linear) and module is not rounded.lm_head:
            module.weight.data = dequantize_4bit(*quantize_4bit(module.weight.data, quant_type="nf4"))
    assert torch.equal(reference.log_probs(policy, BATCH), policy_log_probs(rounded))
    assert not torch.equal(reference.log_probs(policy, BATCH), policy_log_probs(policy))
    restored = CopyReference(dtype="nf4")
    restored.prepare(PretrainedPolicy(llama_dir, dtype=dtype).load())
    restored.load_state_dict(reference.state_dict())
    assert torch.equal(restored.log_probs(policy, BATCH), reference.log_probs(policy, BATCH))
    layer, dense = (model.model.layers[0].mlp.up_proj for model in (reference.model, policy))
    held = sum(buffer.numel() * buffer.element_size() for buffer in layer.buffers())
    assert held * 8 == 4.5 * dense.weight.numel()  # 4 bits, and a scale of 32 for 64 weights


def test_a_copy_in_4_bits_takes_no_soft_update(llama_dir):
    reference = CopyReference(dtype="nf4")
    policy = PretrainedPolicy(llama_dir).load()
    reference.prepare(policy)
    with pytest.raises(UserError, match="only hard updates of all layers"):
        reference.update(policy, 0.5)


def test_only_master_weights_have_a_device_of_their_own():
    with pytest.raises(UserError, match="average_device is for master weights"):
        CopyReference(average_device="cpu")
