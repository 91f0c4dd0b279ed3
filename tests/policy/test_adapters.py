import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaForCausalLM

from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.policy.adapters import (
    adapter_parameters,
    adapter_switched,
    add_adapter_copy,
    base_state_keys,
    is_base,
    lora_factors,
    merged,
    save_adapter,
)
from lit_tr.policy.logprobs import scoring
from lit_tr.reference import FrozenReference

IDS = torch.tensor([[5, 17, 300, 41, 8, 99]])


def filled(policy):
    """Give the adapter values, as training would."""
    torch.manual_seed(1)
    for param in adapter_parameters(policy).values():
        param.data.normal_(std=0.2)
    return policy


def test_a_new_adapter_is_the_base_until_it_is_trained(llama_dir):
    policy = PretrainedPolicy(llama_dir, lora=LoRA(r=4)).load()
    assert is_base(policy)
    assert not is_base(filled(policy))


def test_modules_that_are_trained_whole_are_a_part_of_what_is_no_longer_the_base(llama_dir):
    """B is still 0 after some training of the head alone."""
    config = LoraConfig(r=4, target_modules=["v_proj"], modules_to_save=["lm_head"])
    policy = get_peft_model(PretrainedPolicy(llama_dir).load(), config)
    frozen = FrozenReference()
    frozen.prepare(policy)
    assert is_base(policy)
    assert frozen.adapter is None
    policy.base_model.model.lm_head.modules_to_save["default"].weight.data[0, 0] += 1
    assert not is_base(policy)
    frozen, before = FrozenReference(), policy(IDS).logits
    frozen.prepare(policy)
    policy.base_model.model.lm_head.modules_to_save["default"].weight.data[0] += 1
    with frozen.active(policy) as model:
        assert torch.equal(model(IDS).logits, before)
    assert not torch.equal(policy(IDS).logits, before)


def test_parameters_of_each_adapter_have_the_names_of_the_policys_own(llama_dir):
    policy = PretrainedPolicy(llama_dir, lora=LoRA(r=4)).load()
    add_adapter_copy(policy, "reference")
    trained = {name for name, param in policy.named_parameters() if param.requires_grad}
    for adapter in ("default", "reference"):
        named = adapter_parameters(policy, adapter)
        assert named.keys() == trained
        for name, param in named.items():
            assert policy.get_parameter(name.replace("default", adapter)) is param
    assert lora_factors(policy, "default", "reference").keys() == {name for name in trained if "lora_A" in name}


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
def test_all_is_as_before_after_a_switch_even_when_it_fails(llama_dir, name):
    policy = PretrainedPolicy(llama_dir, lora=LoRA(r=4)).load()
    add_adapter_copy(policy, "reference")
    next(iter(adapter_parameters(policy).values())).requires_grad_(False)  # a user's own choice

    def flags():
        return {key: param.requires_grad for key, param in policy.named_parameters()}

    before, status = flags(), policy.get_layer_status()
    with adapter_switched(policy, name):
        assert policy.get_model_status().enabled == (name is not None)
        assert policy.get_model_status().active_adapters == [name or "default"]
        assert flags() == before
    assert (flags(), policy.get_layer_status()) == (before, status)
    with pytest.raises(ZeroDivisionError), adapter_switched(policy, name):
        _ = 1 / 0
    assert (flags(), policy.get_layer_status()) == (before, status)
    assert policy.active_adapters == ["default"]


def test_switches_within_a_switch(llama_dir):
    policy = filled(PretrainedPolicy(llama_dir, lora=LoRA(r=4)).load())
    add_adapter_copy(policy, "reference")
    for param in adapter_parameters(policy).values():
        param.data += 0.1
    with torch.no_grad(), adapter_switched(policy, "reference"):
        expected = policy(IDS).logits
        with adapter_switched(policy, None):
            assert not torch.equal(policy(IDS).logits, expected)
        assert torch.equal(policy(IDS).logits, expected)


def test_an_adapter_that_is_added_after_a_switch_is_switched_too(llama_dir):
    """The layers are found once; another adapter can bring more of them, and more dropout."""
    policy = filled(PretrainedPolicy(llama_dir, lora=LoRA(r=4, targets=["q_proj"])).load()).train()
    for name in (None, "late"):
        with scoring(policy), adapter_switched(policy, name):
            before = policy(IDS).logits
        if name is None:
            policy.add_adapter("late", LoraConfig(r=4, target_modules=["v_proj"], lora_dropout=0.5))
            for param in adapter_parameters(policy, "late").values():
                param.data.normal_(std=0.2)
    with scoring(policy), adapter_switched(policy, "late"):
        assert torch.equal(policy(IDS).logits, before)
        assert not any(module.training for module in policy.modules())
    assert all(module.training for module in policy.modules())


def test_base_keys_are_all_but_the_adapters(llama_dir):
    policy = PretrainedPolicy(llama_dir, quantize="nf4", lora=LoRA(r=4)).load()
    kept = policy.state_dict().keys() - base_state_keys(policy)
    assert kept
    assert all("lora_" in key for key in kept)
    assert base_state_keys(PretrainedPolicy(llama_dir).load()) == set()


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
