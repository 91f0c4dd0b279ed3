"""Averages of weights, against dense float64 arithmetic by hand."""

import weakref

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from lit_tr.errors import UserError
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.policy.adapters import adapter_parameters, merged
from lit_tr.policy.averages import Averages, average, layer_groups
from tests.policy.test_adapters import IDS, filled

SHAPES = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}


def small(layers=5, seed=0, **options):
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**SHAPES, num_key_value_heads=1, num_hidden_layers=layers, **options))


def by_hand(initial, policy, rate):
    """In float64, rounded to float32 once."""
    return (rate * policy.double() + (1 - rate) * initial.double()).float()


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@given(rate=st.floats(0, 1), seed=st.integers(0, 2**16), half=st.booleans())
def test_an_average_is_that_of_float64_rounded_to_the_policys_precision(rate, seed, half):
    torch.manual_seed(seed)
    dtype = torch.bfloat16 if half else torch.float32
    initial, policy = torch.randn(64), torch.randn(64).to(dtype)
    found = average(initial, policy, rate)
    assert found.dtype == dtype
    tolerance = torch.finfo(dtype).eps
    torch.testing.assert_close(
        found.double(), rate * policy.double() + (1 - rate) * initial.double(), rtol=tolerance, atol=4 * tolerance
    )


def test_the_ends_are_bit_for_bit_and_codes_are_the_policys():
    initial, policy = torch.tensor([0.1, 1e38, float("inf"), -0.0]), torch.tensor([0.3, -3e38, 1.0, -0.0])
    for rate, end in ((0, initial), (1, policy)):
        assert torch.equal(average(initial, policy, rate).view(torch.int32), end.view(torch.int32))
    assert average(torch.tensor([1]), torch.tensor([3]), 0.5).tolist() == [3]


@pytest.mark.parametrize(("count", "groups"), [(1, "00000"), (2, "00011"), (3, "00112"), (4, "00123"), (5, "01234")])
def test_groups_of_an_uneven_number_of_layers_differ_by_one_at_most(count, groups):
    model = small()
    found = layer_groups(model, model.state_dict(), count)
    for layer, group in enumerate(groups):
        assert {g for name, g in found.items() if f".layers.{layer}." in name} == {int(group)}
    assert found["model.embed_tokens.weight"] == 0
    assert found["model.norm.weight"] == found["lm_head.weight"] == count - 1


def test_embeddings_are_of_the_first_group_and_the_rest_outside_layers_of_the_last():
    with torch.device("meta"):
        options = {**SHAPES, "num_hidden_layers": 2, "word_embed_proj_dim": 16}
        opt = AutoModelForCausalLM.from_config(AutoConfig.for_model("opt", **options))
    found = layer_groups(opt, opt.state_dict(), 2)
    outside = {name.rpartition(".")[0].rpartition(".")[2]: g for name, g in found.items() if ".layers." not in name}
    assert outside == {"embed_tokens": 0, "embed_positions": 0, "final_layer_norm": 1, "lm_head": 1}


def test_more_groups_than_layers_are_refused():
    with pytest.raises(UserError, match="6 groups of layers are too many, for the model has 5 layers"):
        layer_groups(small(), (), 6)


@pytest.mark.parametrize("rates", [(0.7,), (0.25, 0.5, 1.0), (1.0, 0.0)])
def test_each_weight_of_a_model_is_averaged_at_the_rate_of_its_group(rates):
    initial, policy = small(seed=1), small(seed=2)
    start = {name: tensor.clone() for name, tensor in initial.state_dict().items()}
    groups = layer_groups(initial, start, len(rates))
    averages = Averages(initial, policy.state_dict())
    for _ in range(2):  # from the ends each time, whatever was set before
        averages.set((0.1,))
        averages.set(rates)
    assert averages.adapter is None
    for name, tensor in averages.model.state_dict().items():
        close(tensor, by_hand(start[name], policy.state_dict()[name], rates[groups[name]]))


@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_rate_1_is_the_policy_and_rate_0_the_initial_policy_bit_for_bit(rate):
    initial, policy = small(seed=1), small(seed=2)
    end = {name: t.clone() for name, t in (policy if rate else initial).state_dict().items()}
    averages = Averages(initial, policy.state_dict())
    averages.set((0.3,))
    averages.set((rate,))
    assert all(torch.equal(tensor, end[name]) for name, tensor in averages.model.state_dict().items())


def test_a_tied_head_stays_tied_and_is_averaged_once_with_the_embeddings():
    initial, policy = (small(seed=seed, tie_word_embeddings=True) for seed in (1, 2))
    start = initial.model.embed_tokens.weight.detach().clone()
    averages = Averages(initial, policy.state_dict())
    averages.set((0.25, 0.75))
    model = averages.model
    assert model.lm_head.weight is model.model.embed_tokens.weight
    close(model.lm_head.weight.data, by_hand(start, policy.lm_head.weight, 0.25))


def test_weights_take_the_precision_of_the_policy():
    initial, policy = small(seed=1), small(seed=2).bfloat16()
    averages = Averages(initial, policy.state_dict())
    averages.set((0.5,))
    assert {tensor.dtype for tensor in averages.model.state_dict().values()} == {torch.bfloat16}


def test_the_last_average_frees_what_it_is_made_of():
    initial, policy = small(seed=1), small(seed=2)
    averages = Averages(initial, {name: tensor.clone() for name, tensor in policy.state_dict().items()})
    held = [weakref.ref(tensor) for ends in averages._ends.values() for tensor in ends]
    averages.set((0.5,), last=True)
    assert sum(one() is not None for one in held) <= 2  # of the tensor that came last
    assert set(averages._ends) == set()


def test_models_that_do_not_go_together_are_told_by_name():
    with pytest.raises(UserError, match=r"'model.layers.3.* has the shape .*, and none in the policy"):
        Averages(small(), small(layers=3).state_dict())
    other = LlamaForCausalLM(LlamaConfig(**{**SHAPES, "vocab_size": 32}, num_key_value_heads=1, num_hidden_layers=5))
    with pytest.raises(UserError, match=r"shape \(64, 16\) in the initial policy, and the shape \(32, 16\) in the"):
        Averages(small(), other.state_dict())


@pytest.mark.parametrize("rates", [(-0.1,), (1.01,), (0.5, float("nan")), ()])
def test_rates_that_are_none_are_refused(rates):
    with pytest.raises(UserError, match="average: (a rate must be in|give one rate)"):
        Averages(small(), small().state_dict()).set(rates)


def dense(policy, adapter="default"):
    """The weights of each linear layer with an adapter, float64, by the layer's name."""
    found = {}
    for name, layer in policy.named_modules():
        if hasattr(layer, "lora_A") and adapter in layer.lora_A:
            delta = layer.lora_B[adapter].weight.double() @ layer.lora_A[adapter].weight.double()
            found[name.removeprefix("base_model.model.")] = (
                layer.base_layer.weight.double() + layer.scaling[adapter] * delta
            )
    return found


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("rates", [(0.7,), (0.2, 0.9), (0.0,)])
def test_a_new_adapters_update_is_scaled_by_the_rate(llama_dir, rates, rslora):
    start = PretrainedPolicy(llama_dir, lora=LoRA(r=4, rslora=rslora))
    policy = filled(start.load())
    base, trained = LlamaForCausalLM.from_pretrained(llama_dir), dense(policy)
    averages = Averages(start.load(), policy.state_dict())
    averages.set(rates)
    config = averages.model.peft_config[averages.adapter]
    assert (config.r, config.lora_alpha) == (4, 32)
    model = merged(averages.model, averages.adapter)
    groups = layer_groups(base, base.state_dict(), len(rates))
    assert len(trained) == 2 * 7
    for name, tensor in base.state_dict().items():
        weight, rate = model.state_dict()[name], rates[groups[name]]
        layer = name.removesuffix(".weight")
        expected = by_hand(tensor, trained[layer], rate) if layer in trained else tensor
        torch.testing.assert_close(weight, expected, rtol=1e-6, atol=1e-6)
        assert rate or torch.equal(weight, tensor)


@pytest.fixture
def continued(llama_dir, tmp_path):
    """The source of a policy that begins with an adapter and a head of its own, and the policy after training."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"], modules_to_save=["lm_head"])
    adapted = filled(get_peft_model(LlamaForCausalLM.from_pretrained(llama_dir), config))
    adapted.save_pretrained(tmp_path / "adapter")
    source = PretrainedPolicy(llama_dir, adapter=str(tmp_path / "adapter"))
    policy = source.load()
    torch.manual_seed(2)
    for param in adapter_parameters(policy).values():
        param.data += 0.1 * torch.randn_like(param)
    return source, policy


@pytest.mark.parametrize("rates", [(0.3,), (0.6, 0.1), (1.0,), (0.0,)])
def test_adapters_that_began_as_one_are_averaged_as_weights(continued, rates):
    source, policy = continued
    initial = source.load()
    ends = dense(initial), dense(policy)
    heads = [adapter_parameters(one)["base_model.model.lm_head.modules_to_save.default.weight"].detach().clone()
             for one in (initial, policy)]  # fmt: skip
    averages = Averages(initial, policy.state_dict())
    averages.set(rates)
    assert averages.model.peft_config[averages.adapter].r == 8
    model = merged(averages.model, averages.adapter)
    groups = layer_groups(model, model.state_dict(), len(rates))
    assert len(ends[0]) == 4
    for name, start in ends[0].items():
        expected = by_hand(start, ends[1][name], rates[groups[f"{name}.weight"]])
        torch.testing.assert_close(model.get_submodule(name).weight.data, expected, rtol=1e-6, atol=1e-6)
    close(model.lm_head.weight.data, by_hand(*heads, rates[-1]))


def test_the_average_is_active_and_the_policys_training_mode_comes_back(llama_dir):
    start = PretrainedPolicy(llama_dir, lora=LoRA(r=4, dropout=0.5))
    policy, base = filled(start.load()), LlamaForCausalLM.from_pretrained(llama_dir)
    averages = Averages(start.load(), policy.state_dict())
    with torch.no_grad():
        ends = base.eval()(IDS).logits, policy.eval()(IDS).logits
    for rate, expected in zip((0.0, 1.0), ends, strict=True):
        with averages.at((rate,)) as model:
            assert not model.training
            assert not torch.is_grad_enabled()
            torch.testing.assert_close(model(IDS).logits, expected)
    assert averages.model.training


def test_embeddings_with_an_adapter_are_of_the_first_group(llama_dir):
    config = LoraConfig(r=2, target_modules=["embed_tokens", "v_proj"], modules_to_save=["lm_head"])
    policy = get_peft_model(LlamaForCausalLM.from_pretrained(llama_dir), config)
    groups = layer_groups(policy, adapter_parameters(policy), 2)
    outside = {name.rsplit(".", 2)[0].removeprefix("base_model.model."): g for name, g in groups.items()}
    assert outside["model.embed_tokens"] == 0
    assert outside["lm_head.modules_to_save"] == 1


def test_an_adapter_that_is_not_plain_lora_is_refused(llama_dir):
    config = LoraConfig(r=2, target_modules=["v_proj"], use_dora=True)
    policy = get_peft_model(LlamaForCausalLM.from_pretrained(llama_dir), config)
    with pytest.raises(UserError, match="average of adapters needs plain LoRA adapters, and this one has use_dora"):
        Averages(policy, policy.state_dict())
