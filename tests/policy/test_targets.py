import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lit_tr.errors import UserError
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.policy.targets import target_names

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 64}


def model(kind, **options):
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**options))


@pytest.mark.parametrize(
    ("kind", "options", "attention", "mlp"),
    [
        ("llama", SMALL, ["k_proj", "o_proj", "q_proj", "v_proj"], ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]),
        ("gpt_neox", SMALL, ["attention.dense", "attention.query_key_value"],
         ["mlp.dense_4h_to_h", "mlp.dense_h_to_4h"]),
        ("gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 64}, ["attn.c_attn", "attn.c_proj"],
         ["mlp.c_fc", "mlp.c_proj"]),
    ],
)  # fmt: skip
def test_presets_part_the_linear_layers(kind, options, attention, mlp):
    policy = model(kind, **options)
    prefix = "self_attn." if kind == "llama" else ""
    assert target_names(policy, "attention") == [prefix + name for name in attention]
    assert target_names(policy, "mlp") == mlp


def test_other_targets_stay_as_they_are():
    for targets in ("all-linear", ["q_proj"], r".*\.q_proj"):
        assert target_names(torch.nn.Linear(1, 1), targets) is targets


def test_a_preset_trains_its_layers_alone(llama_dir):
    for preset, layers in (("attention", 4), ("mlp", 3)):
        policy = PretrainedPolicy(llama_dir, lora=LoRA(r=2, targets=preset)).load()
        trained = [name for name, param in policy.named_parameters() if param.requires_grad]
        assert len(trained) == 2 * 2 * layers
        assert all(("self_attn" in name) == (preset == "attention") for name in trained)


def test_a_model_without_such_layers_is_refused():
    policy = model("mamba", **{**SMALL, "num_attention_heads": None})
    with pytest.raises(UserError, match="MambaForCausalLM has no attention layers that are known: name them"):
        target_names(policy, "attention")
