import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from lit_tr.policy.layers import repeated_layers

SHAPES = {"vocab_size": 64, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3}


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("llama", "model.layers"),
        ("gpt_neox", "gpt_neox.layers"),
        ("gpt2", "transformer.h"),
        ("opt", "model.decoder.layers"),
    ],
)
def test_the_layers_of_a_language_model_are_found(kind, path):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPES))
    found, layers = repeated_layers(model)
    assert found == path
    assert layers == list(model.get_submodule(path))
    assert len(layers) == 3


def test_other_models_have_none():
    assert repeated_layers(nn.Sequential(nn.ModuleList([nn.Linear(1, 1)]))) == ("", [])
