from dataclasses import astuple

import pytest
from transformers import AutoConfig, LlamaConfig

from lit_tr.data import Collator
from lit_tr.planning.layers import Stack
from lit_tr.planning.plan import Lengths, Plan, Run
from lit_tr.policy.loading import LoRA, PretrainedPolicy


@pytest.fixture
def deep(tmp_path, llama_dir):
    config = LlamaConfig.from_pretrained(llama_dir)
    config.num_hidden_layers = 7
    config.save_pretrained(tmp_path / "deep")
    return str(tmp_path / "deep")


@pytest.mark.parametrize("tokens", [10, 300])  # the peak is at the end of the backward pass, or at its start
@pytest.mark.parametrize(
    "options", [{}, {"lora": LoRA(r=4)}, {"lora": LoRA(r=4), "quantize": "nf4", "gradient_checkpointing": True}]
)
def test_a_few_layers_say_what_all_take(deep, options, tokens):
    batch = Collator()(Lengths(tokens, tokens).examples(2))
    few, every = (Plan(Run(PretrainedPolicy(deep, **options))) for _ in range(2))
    assert few.stack.few
    every.stack.few = 0
    assert astuple(few.step(batch)) == astuple(every.step(batch))


def test_layers_that_differ_are_taken_in_groups_or_all(tmp_path):
    types = ["sliding_attention", "full_attention"]
    shapes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "head_dim": 16}

    def stack_of(kinds):
        config = AutoConfig.for_model("gemma2", **shapes, num_hidden_layers=len(kinds), layer_types=kinds)
        config.save_pretrained(tmp_path)
        return Plan(Run(PretrainedPolicy(str(tmp_path)))).stack

    assert (stack_of(types * 4).period, stack_of(types * 4).few) == (2, 3)
    assert stack_of(types * 3).few == 0  # too few groups
    assert stack_of([types[0]] * 6 + [types[1]]).few == 0


def test_all_layers_are_back_after_a_step(deep):
    plan = Plan(Run(PretrainedPolicy(deep)))
    plan.step(Collator()(Lengths(5, 5).examples(1)))
    assert len(getattr(plan.stack.parent, plan.stack.name)) == 7
    assert isinstance(plan.stack, Stack)
