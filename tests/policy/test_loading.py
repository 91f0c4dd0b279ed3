import copy

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from transformers import LlamaForCausalLM

from lit_tr.embedded import TINY
from lit_tr.errors import UserError
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.policy.adapters import (
    adapter_parameters,
    is_base,
)
from lit_tr.policy.logprobs import scoring

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
            "attention flash_attention_2 needs a package that is not installed: pip install flash-attn, or take",
        ),
        (lambda: PretrainedPolicy(TINY, attention="flash_attention_2").load_meta(), "pip install flash-attn"),
        (lambda: PretrainedPolicy("nobody/nothing").load(), "nobody/nothing: no causal language model"),
        (lambda: PretrainedPolicy(TINY, adapter="nobody/nothing").load(), "nobody/nothing: no adapter"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize("load", [PretrainedPolicy.load, PretrainedPolicy.load_meta])
def test_an_adapter_of_a_hub_that_does_not_answer_is_one_message_before_any_weight(no_hub, load):
    with pytest.raises(UserError, match=f"^nobody/adapter is no folder .* {no_hub} does not answer"):
        load(PretrainedPolicy("nobody/base", adapter="nobody/adapter"))


def test_rank_stabilized_adapters_are_scaled_by_the_root_of_the_rank(llama_dir):
    model = PretrainedPolicy(llama_dir, lora=LoRA(r=4, alpha=6, rslora=True)).load()
    scalings = {layer.scaling["default"] for layer in model.modules() if isinstance(layer, LoraLayer)}
    assert scalings == {6 / 4**0.5}
