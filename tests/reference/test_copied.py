import copy

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from lit_tr.data.batches import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.errors import UserError
from lit_tr.policy import PretrainedPolicy, response_log_probs
from lit_tr.policy.logprobs import scoring
from lit_tr.reference import CopyReference

BATCH = Collator(packed=False)([TokenizedExample([5, 17], [300, 41, 0], [8, 0])])


def moved(policy, seed=2):
    """Train one step by hand."""
    torch.manual_seed(seed)
    for param in policy.parameters():
        if param.requires_grad:
            param.data += 0.1 * torch.randn_like(param)
    return policy


def policy_log_probs(policy):
    with scoring(policy):
        return response_log_probs(policy, BATCH)


def test_a_bfloat16_copy_follows_as_float32_would_and_saves_what_that_takes(llama_dir):
    policy = PretrainedPolicy(llama_dir, dtype="bfloat16").load()
    reference, twin = CopyReference(), CopyReference(dtype="float32")
    reference.prepare(policy)
    twin.prepare(policy)
    moved(policy)
    for _ in range(20):
        reference.update(policy, 0.01)
        twin.update(policy, 0.01)
    restored = CopyReference()
    restored.prepare(policy)
    restored.load_state_dict(reference.state_dict())
    for _ in range(20):
        restored.update(policy, 0.01)
        twin.update(policy, 0.01)
    for ours, theirs in zip(restored.model.parameters(), twin.model.parameters(), strict=True):
        assert ours.dtype == torch.bfloat16
        assert torch.equal(ours, theirs.bfloat16())


def test_a_copy_may_be_held_in_a_lower_precision_and_elsewhere(llama_dir):
    policy = PretrainedPolicy(llama_dir).load()
    reference = CopyReference(sums="plain", dtype="bfloat16", device="cpu")
    reference.prepare(policy)
    assert {param.dtype for param in reference.model.parameters()} == {torch.bfloat16}
    assert not reference.state_dict().keys() - {f"model.{key}" for key in reference.model.state_dict()}
    moved(policy)
    reference.update(policy, 1.0)
    torch.testing.assert_close(reference.log_probs(policy, BATCH), policy_log_probs(policy), rtol=0.02, atol=0.1)
    reference.to("meta")  # as a strategy moves the module
    assert {param.device.type for param in reference.parameters()} == {"cpu"}


@pytest.mark.parametrize("arguments", [{"sums": "float32"}, {"sums": "float32", "sums_device": "cpu"}])
def test_float32_sums_of_a_bfloat16_copy_are_kept_and_saved(llama_dir, arguments):
    policy = PretrainedPolicy(llama_dir, dtype="bfloat16").load()
    reference, twin = CopyReference(**arguments), CopyReference(dtype="float32")
    reference.prepare(policy)
    twin.prepare(policy)
    moved(policy)
    for _ in range(10):
        reference.update(policy, 0.001)
        twin.update(policy, 0.001)
    reference.to(torch.bfloat16)  # as a strategy's precision casts the module
    restored = CopyReference(**arguments)
    restored.prepare(policy)
    restored.load_state_dict(reference.state_dict())
    sums = restored.sums.by_name()
    assert {name for name, _ in restored.model.named_parameters()} == sums.keys()
    for name, param in twin.model.named_parameters():
        assert torch.equal(sums[name], param)
        assert torch.equal(restored.model.get_parameter(name), param.bfloat16())
    reference.sums.to("meta")
    assert {buffer.device.type for buffer in reference.sums.buffers()} == {arguments.get("sums_device", "meta")}


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
    with pytest.raises(UserError, match="hard updates of all layers alone"):
        reference.update(policy, 0.5)


def test_sums_beside_the_weights_have_no_device_of_their_own():
    with pytest.raises(UserError, match="sums_device is for float32 sums"):
        CopyReference(sums_device="cpu")
