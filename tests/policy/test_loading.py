import copy

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from lit_tr.embedded import TINY
from lit_tr.errors import UserError
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.policy.loading import (
    adapter_parameters,
    adapter_switched,
    add_adapter_copy,
    base_state_keys,
    is_base,
    merged,
    save_adapter,
)
from lit_tr.policy.reference import scoring

IDS = torch.tensor([[5, 17, 300, 41, 8, 99]])


def filled(policy):
    """Give the adapter values, as training would."""
    torch.manual_seed(1)
    for param in adapter_parameters(policy).values():
        param.data.normal_(std=0.2)
    return policy


def test_the_embedded_model_is_about_1m_parameters_in_float32_and_trains():
    policy = PretrainedPolicy(TINY).load()
    assert 0.9e6 < sum(param.numel() for param in policy.parameters()) < 1.2e6
    assert {param.dtype for param in policy.parameters()} == {torch.float32}
    assert policy.training


def test_lora_trains_the_adapter_alone(llama_dir):
    policy = PretrainedPolicy(llama_dir, lora=LoRA(r=4)).load()
    trained = {name for name, param in policy.named_parameters() if param.requires_grad}
    assert trained
    assert all(".default." in name for name in trained)
    assert len(trained) == 2 * 2 * 7  # A and B of 7 linear layers in 2 blocks


@pytest.mark.parametrize("mode", ["train", "eval first"])
def test_gradients_through_a_4bit_base_are_those_of_the_dense_weights(llama_dir, mode):
    """An evaluation in between must not cut gradients (bitsandbytes repacks weights for its CPU kernel)."""
    policy = filled(PretrainedPolicy(llama_dir, quantize="nf4", lora=LoRA(r=4)).load())
    dense = filled(PretrainedPolicy(llama_dir, lora=LoRA(r=4)).load())
    for theirs, module in zip(dense.modules(), policy.modules(), strict=True):
        if isinstance(module, Linear4bit):
            theirs.weight.data = dequantize_4bit(module.weight.data, module.weight.quant_state).float()
    if mode == "eval first":
        with scoring(policy):
            policy(IDS)
    for model in (policy, dense):
        model(IDS).logits.logsumexp(-1).mean().backward()
    for name, param in adapter_parameters(policy).items():
        torch.testing.assert_close(param.grad, adapter_parameters(dense)[name].grad, rtol=1e-4, atol=1e-6)


def test_a_sft_adapter_is_gone_on_with(llama_dir, tmp_path):
    model = get_peft_model(LlamaForCausalLM.from_pretrained(llama_dir), LoraConfig(r=2, target_modules="all-linear"))
    filled(model).save_pretrained(tmp_path)
    policy = PretrainedPolicy(llama_dir, adapter=str(tmp_path)).load()
    assert not is_base(policy)
    for name, param in adapter_parameters(policy).items():
        assert torch.equal(param, adapter_parameters(model)[name])
        assert param.requires_grad


def test_a_new_adapter_is_the_base_until_it_is_trained(llama_dir):
    policy = PretrainedPolicy(llama_dir, lora=LoRA(r=4)).load()
    assert is_base(policy)
    assert not is_base(filled(policy))


def test_switched_adapters_compute_what_they_hold(llama_dir):
    base = LlamaForCausalLM.from_pretrained(llama_dir)
    policy = filled(PretrainedPolicy(llama_dir, lora=LoRA(r=4, dropout=0.5)).load())
    add_adapter_copy(policy, "reference")
    with scoring(policy):
        before = policy(IDS).logits
        for param in adapter_parameters(policy).values():
            param.data += 0.1
        after = policy(IDS).logits
        with adapter_switched(policy, "reference"):
            assert torch.equal(policy(IDS).logits, before)
        with adapter_switched(policy, None):
            torch.testing.assert_close(policy(IDS).logits, base(IDS).logits)
        assert torch.equal(policy(IDS).logits, after)
        assert not torch.allclose(before, after)


@pytest.mark.parametrize("name", [None, "reference"])
def test_flags_are_as_before_after_a_switch_even_when_it_fails(llama_dir, name):
    policy = PretrainedPolicy(llama_dir, lora=LoRA(r=4)).load()
    add_adapter_copy(policy, "reference")
    next(iter(adapter_parameters(policy).values())).requires_grad_(False)  # a user's own choice
    before = {key: param.requires_grad for key, param in policy.named_parameters()}
    with pytest.raises(ZeroDivisionError), adapter_switched(policy, name):
        _ = 1 / sum(param.requires_grad for param in policy.parameters())  # none is trainable inside
    assert {key: param.requires_grad for key, param in policy.named_parameters()} == before
    assert policy.active_adapters == ["default"]


def test_base_keys_are_all_but_the_adapters(llama_dir):
    policy = PretrainedPolicy(llama_dir, quantize="nf4", lora=LoRA(r=4)).load()
    kept = policy.state_dict().keys() - base_state_keys(policy)
    assert kept
    assert all("lora_" in key for key in kept)
    assert base_state_keys(PretrainedPolicy(llama_dir).load()) == set()


def test_a_copy_of_a_4bit_policy_holds_the_same_codes(llama_dir):
    policy = PretrainedPolicy(llama_dir, quantize="nf4", lora=LoRA(r=4)).load()
    copied = copy.deepcopy(policy)
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), copied.parameters(), strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PretrainedPolicy("a", quantize="nf4"), "4-bit weights cannot be trained"),
        (lambda: PretrainedPolicy("a", lora=LoRA(), adapter="b"), "not both"),
        (lambda: LoRA(r=0), "r must be at least 1"),
        (lambda: PretrainedPolicy(TINY, lora=LoRA(targets=["no_layer"])).load(), "no adapter on the layers"),
        (
            lambda: PretrainedPolicy(TINY, attention="flash_attention_2").load(),
            "embedded:tiny: no causal language model",
        ),
        (lambda: PretrainedPolicy("nobody/nothing").load(), "nobody/nothing: no causal language model"),
        (lambda: PretrainedPolicy(TINY, adapter="nobody/nothing").load(), "nobody/nothing: no adapter"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_an_adapter_of_another_rank_than_the_policys_is_saved_and_merged_with_its_own(llama_dir, tmp_path):
    policy = filled(PretrainedPolicy(llama_dir, lora=LoRA(r=4)).load())
    policy.add_adapter("wide", LoraConfig(r=8, lora_alpha=24, target_modules="all-linear", task_type="CAUSAL_LM"))
    for param in adapter_parameters(policy, "wide").values():
        param.data.normal_(std=0.2)
    policy.base_model.set_adapter("wide")
    expected = policy(IDS).logits
    save_adapter(policy, "wide", llama_dir, tmp_path)
    plain = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(llama_dir), tmp_path)
    assert (plain.peft_config["default"].r, plain.peft_config["default"].lora_alpha) == (8, 24)
    torch.testing.assert_close(plain(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(merged(policy, "wide")(IDS).logits, expected, rtol=1e-4, atol=1e-4)
