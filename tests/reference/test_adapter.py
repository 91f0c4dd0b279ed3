import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from lit_tr.errors import UserError
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.policy.adapters import adapter_parameters
from lit_tr.reference import AdapterReference
from tests.reference.by_hand import BATCH, moved, policy_log_probs


def test_soft_update_of_factors_is_the_average_of_each(llama_dir):
    policy = PretrainedPolicy(llama_dir, lora=LoRA(r=4)).load()
    reference = AdapterReference("factors")
    reference.prepare(policy)
    old = {name: param.detach().clone() for name, param in adapter_parameters(policy, "reference").items()}
    moved(policy)
    assert reference.update(policy, 0.25) == {}
    for name, param in adapter_parameters(policy).items():
        expected = 0.25 * param.detach() + 0.75 * old[name]
        torch.testing.assert_close(adapter_parameters(policy, "reference")[name].detach(), expected)


def deltas(policy, adapter):
    """What an adapter adds to each weight, dense, in float64, as PEFT itself forms it."""
    layers = [(name, layer) for name, layer in policy.named_modules() if isinstance(layer, LoraLayer)]
    return {name: layer.get_delta_weight(adapter).detach().double() for name, layer in layers}


ADAPTERS = {
    "plain": LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"),
    "rank-stabilised": LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "down_proj"]),
    "patterns": LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules="all-linear",
        rank_pattern={"q_proj": 2, "0.mlp.up_proj": 6},
        alpha_pattern={"k_proj": 3, "q_proj": 5},
    ),
    "embeddings": LoraConfig(r=4, lora_alpha=8, target_modules=["embed_tokens", "v_proj"]),
    "whole modules": LoraConfig(r=4, lora_alpha=8, target_modules=["v_proj"], modules_to_save=["lm_head"]),
}


def adapted(folder, config, **options):
    """A policy with an adapter that was trained before."""
    torch.manual_seed(1)
    policy = get_peft_model(PretrainedPolicy(folder, **options)._load_base("cpu"), config)
    return moved(policy, seed=3)


@pytest.mark.parametrize("rank", [None, 5 * 4, 1 * 4])
@pytest.mark.parametrize("kind", ADAPTERS)
def test_soft_update_in_weight_space_is_the_average_of_the_weights(llama_dir, kind, rank):
    policy, reference = adapted(llama_dir, ADAPTERS[kind]), AdapterReference(rank=rank)
    reference.prepare(policy)
    before = policy_log_probs(policy)
    start = deltas(policy, "default")
    for name, delta in deltas(policy, "reference").items():
        torch.testing.assert_close(delta, start[name], rtol=1e-5, atol=1e-6)
    moved(policy)
    way = [(delta - start[name]).square().sum().item() for name, delta in deltas(policy, "default").items()]
    assert reference.distance(policy).item() == pytest.approx(sum(way) ** 0.5, rel=1e-4)
    figures = reference.update(policy, 0.3)
    cut = total = 0.0
    after, now = deltas(policy, "default"), deltas(policy, "reference")
    for name, delta in now.items():
        exact = 0.3 * after[name] + 0.7 * start[name]
        cut += (delta - exact).square().sum().item()
        total += exact.square().sum().item()
    assert figures["relative_error"] == pytest.approx((cut / total) ** 0.5, rel=1e-3, abs=1e-5)
    assert (figures["relative_error"] < 1e-5) == (rank != 4)  # twice the rank holds the average of two
    saved = {name: param for name, param in adapter_parameters(policy, "reference").items() if "lora_" not in name}
    for name, param in saved.items():
        ours = adapter_parameters(policy)[name]
        assert not torch.equal(param, ours)
    reference.update(policy, 1.0)
    assert not torch.allclose(before, policy_log_probs(policy), atol=1e-3)
    if rank != 4:
        torch.testing.assert_close(reference.log_probs(policy, BATCH), policy_log_probs(policy), rtol=1e-5, atol=1e-4)


def test_whole_modules_are_averaged_too(llama_dir):
    policy, reference = adapted(llama_dir, ADAPTERS["whole modules"]), AdapterReference()
    reference.prepare(policy)
    start = next(p.clone() for n, p in adapter_parameters(policy).items() if "lora_" not in n)
    moved(policy)
    reference.update(policy, 0.3)
    ours, theirs = (
        next(p for n, p in adapter_parameters(policy, adapter).items() if "lora_" not in n)
        for adapter in ("default", "reference")
    )
    torch.testing.assert_close(theirs, 0.3 * ours.detach() + 0.7 * start.detach())


def test_layers_may_follow_at_rates_of_their_own_in_weight_space(llama_dir):
    policy, reference = adapted(llama_dir, ADAPTERS["plain"]), AdapterReference()
    reference.prepare(policy)
    start = deltas(policy, "default")
    moved(policy)
    reference.update(policy, lambda name: 0.4 if "layers.0" in name else 0.0)
    after = deltas(policy, "default")
    for name, delta in deltas(policy, "reference").items():
        exact = 0.4 * after[name] + 0.6 * start[name] if "layers.0" in name else start[name]
        torch.testing.assert_close(delta, exact, rtol=1e-4, atol=1e-5)


def test_the_error_of_factors_is_logged_where_asked(llama_dir):
    policy, reference = adapted(llama_dir, ADAPTERS["plain"]), AdapterReference("factors", log_error=True)
    reference.prepare(policy)
    start = deltas(policy, "default")
    moved(policy)
    figures = reference.update(policy, 0.3)
    cut = total = 0.0
    after = deltas(policy, "default")
    for name, delta in deltas(policy, "reference").items():
        exact = 0.3 * after[name] + 0.7 * start[name]
        cut += (delta - exact).square().sum().item()
        total += exact.square().sum().item()
    assert figures["relative_error"] == pytest.approx((cut / total) ** 0.5, rel=1e-4)
    assert figures["relative_error"] > 0.05


def test_a_reference_of_a_bfloat16_policy_may_stay_in_float32(llama_dir):
    policy = PretrainedPolicy(llama_dir, dtype="bfloat16").load()
    policy = get_peft_model(policy, ADAPTERS["plain"], autocast_adapter_dtype=False)
    reference = AdapterReference(dtype="float32")
    reference.prepare(policy)
    assert {param.dtype for param in adapter_parameters(policy).values()} == {torch.bfloat16}
    assert {param.dtype for param in adapter_parameters(policy, "reference").values()} == {torch.float32}
    assert reference.log_probs(policy, BATCH).isfinite().all()


def test_an_adapter_that_has_diverged_is_named(llama_dir):
    policy, reference = adapted(llama_dir, ADAPTERS["plain"]), AdapterReference()
    reference.prepare(policy)
    policy.get_submodule("base_model.model.model.layers.1.mlp.up_proj.lora_A.default").weight.data[0, 0] = float("nan")
    with pytest.raises(UserError, match="cannot be averaged, for it holds non-finite numbers"):
        reference.update(policy, 0.5)


def test_a_layer_whose_rate_is_zero_stays_as_it_is(llama_dir):
    policy, reference = adapted(llama_dir, ADAPTERS["plain"]), AdapterReference()
    reference.prepare(policy)
    old = {name: param.detach().clone() for name, param in adapter_parameters(policy, "reference").items()}
    moved(policy)
    reference.update(policy, lambda name: 0.5 if "layers.0" in name else 0.0)
    same = {name: torch.equal(param, old[name]) for name, param in adapter_parameters(policy, "reference").items()}
    assert all(same[name] == ("layers.0" not in name) for name in same)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_dora": True}, "plain LoRA adapters, and this one has use_dora"),
        ({"bias": "lora_only"}, "this one has bias 'lora_only'"),
        ({"r": 8}, "rank 6 cannot hold a policy of rank 8"),
        ({"rank_pattern": {"q_proj": 3}}, "rank 6 makes fractional ranks of rank_pattern"),
    ],
)
def test_adapters_that_are_no_plain_lora_are_refused(llama_dir, change, message):
    config = LoraConfig(**{"r": 4, "target_modules": "all-linear", **change})
    with pytest.raises(UserError, match=message):
        AdapterReference(rank=6).prepare(adapted(llama_dir, config))


@pytest.mark.parametrize(
    ("arguments", "message"), [({"average": "factors", "rank": 3}, "leave rank out"), ({"rank": 0}, "at least 1")]
)
def test_wrong_arguments_of_an_adapter_reference(arguments, message):
    with pytest.raises(UserError, match=message):
        AdapterReference(**arguments)


def test_4bit_codes_are_never_blended(llama_dir):
    policy, reference = PretrainedPolicy(llama_dir, lora=LoRA(r=4), quantize="nf4").load(), AdapterReference()
    reference.prepare(policy)
    codes = {name: p.detach().clone() for name, p in policy.named_parameters() if p.dtype == torch.uint8}
    assert codes
    moved(policy)
    for alpha in (0.5, 1.0):
        reference.update(policy, alpha)
    assert all(torch.equal(param, codes[name]) for name, param in policy.named_parameters() if name in codes)
