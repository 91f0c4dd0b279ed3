"""The proof of packs, on random models: of every causal model type (slow), and of the kinds of fault there are."""

from functools import wraps

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from lit_tr.data.collator import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.policy.adapters import causal_model
from lit_tr.policy.logprobs import accepted, response_log_probs
from lit_tr.policy.probe import _depends, why_not_packed, why_not_split
from tests.policy.causal_types import AT_RANDOM, NOT_BUILT, TYPES, VOCABULARY, tiny_model
from tests.policy.packing_table import NOT_TRIED, PAGE, row, row_of_not_tried

PADS_ON_THE_LEFT = "cpmant"  # and takes no attention mask
NOT_IN_BFLOAT16 = ("xlnet", "xlstm")  # their own code mixes it with float32
SEES_ITS_LENGTH = {"prophetnet": 0.05}
"""Types whose first tokens' log-probs change with the length of the row, and by how much, in nats."""


def some_pairs(seed=1):
    """Two pairs, of 1 and 70 tokens of prompt: far beyond the windows of tiny models, 8 tokens."""
    draw = torch.Generator().manual_seed(seed)

    def ids(count):
        return torch.randint(20, VOCABULARY - 10, (count,), generator=draw).tolist()

    return [TokenizedExample(ids(1), ids(7), ids(4)), TokenizedExample(ids(70), ids(3), ids(30))]


def laid_out(model, pairs, reason):
    batch = Collator()(pairs)
    with torch.no_grad():
        return response_log_probs(model, batch.padded() if reason else batch)


def one_by_one(model, pairs):
    """Log-probs of responses by the model alone: no mask, no positions, no batch."""
    sums = []
    for prompt, response in [(p.prompt, p.chosen) for p in pairs] + [(p.prompt, p.rejected) for p in pairs]:
        with torch.no_grad():
            ids = torch.tensor([prompt + response])
            logits = model(input_ids=ids, **accepted(model, use_cache=False)).logits[0].double().log_softmax(-1)
        sums.append(sum(logits[len(prompt) - 1 + i, token] for i, token in enumerate(response)))
    return torch.stack(sums).float()


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in NOT_TRIED])
def test_a_type_is_packed_or_padded_to_the_numbers_of_its_rows_one_by_one(kind):
    pairs, exact = some_pairs(), None
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model(kind, dtype)
        if kind in NOT_IN_BFLOAT16 and dtype == torch.bfloat16:
            assert "padded rows: the model does not take them" in why_not_packed(model)
            continue
        reason = why_not_packed(model)
        assert row(kind, reason) in PAGE.read_text()
        if kind == PADS_ON_THE_LEFT:
            assert "padded rows: diverge from rows one by one" in reason
            continue
        ours, own = laid_out(model, pairs, reason), one_by_one(model, pairs)
        slack = SEES_ITS_LENGTH.get(kind, 1e-3)
        if exact is None:
            exact = own
            torch.testing.assert_close(ours, own, rtol=1e-4, atol=slack)
        else:  # both have round-off of the size that float32 shows on these few responses
            assert (ours - own).abs().max() <= 4 * (own - exact).abs().max() + slack


@pytest.mark.slow
@pytest.mark.parametrize("kind", NOT_BUILT)
def test_types_that_are_not_built_are_so_listed(kind):
    assert row_of_not_tried(kind) in PAGE.read_text()
    with pytest.raises((ImportError, AttributeError, ValueError, RuntimeError, StrictDataclassError)):
        one_by_one(tiny_model(kind), some_pairs())


@pytest.mark.slow
@pytest.mark.parametrize("kind", AT_RANDOM)
def test_types_that_score_at_random_are_so_listed(kind):
    assert row_of_not_tried(kind) in PAGE.read_text()
    model = tiny_model(kind)
    assert not torch.equal(one_by_one(model, some_pairs()), one_by_one(model, some_pairs()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["granitemoehybrid", "lfm2", "qwen3_next"])
def test_a_state_that_leaks_from_response_to_response_is_found_in_any_precision(kind, dtype):
    assert "other tokens in one response move" in why_not_packed(tiny_model(kind, dtype))


@pytest.mark.parametrize("kind", ["gemma4", "gemma4_unified"])
def test_a_composite_configuration_keeps_its_cap_in_packs(kind):
    model = tiny_model(kind, text_config={"final_logit_softcapping": 3.0})
    assert why_not_packed(model) is None
    ours, capped = laid_out(model, some_pairs(), None), one_by_one(model, some_pairs())
    torch.testing.assert_close(ours, capped, rtol=1e-4, atol=1e-3)
    model.config.text_config.final_logit_softcapping = None
    assert (one_by_one(model, some_pairs()) - capped).abs().max() > 1


def test_a_loaded_model_that_asks_for_the_name_of_its_attention_is_the_model_itself(tmp_path):
    own = tiny_model("deepseek_v32")  # top-k of 8 tokens: its sparse layers ask for eager or sdpa
    own.save_pretrained(tmp_path)
    own = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    policy = PretrainedPolicy(str(tmp_path)).load().eval()
    assert policy.config._attn_implementation == own.config._attn_implementation
    assert "the model's layers change the attention mask" in why_not_packed(policy)
    torch.testing.assert_close(
        laid_out(policy, some_pairs(), "padded"), one_by_one(own, some_pairs()), rtol=1e-3, atol=1e-2
    )
    ids = torch.tensor([some_pairs()[1].prompt])
    sampled, expected = (model.generate(ids, do_sample=False, max_new_tokens=8) for model in (policy, own))
    assert torch.equal(sampled, expected)


def test_models_in_memory_take_packs():
    model = tiny_model("llama")
    assert why_not_packed(model) is None
    adapted = get_peft_model(model, LoraConfig(target_modules="all-linear", init_lora_weights=False))
    assert why_not_packed(adapted) is None
    torch.testing.assert_close(laid_out(adapted.eval(), some_pairs(), None), one_by_one(adapted, some_pairs()))


def test_a_chunk_that_no_row_reaches_keeps_no_model_from_packs():
    model = tiny_model("llama4_text", attention_chunk_size=128, initializer_range=0.05)
    assert "packs and rows one by one diverge" in why_not_packed(model)
    assert why_not_packed(model, longest=128) is None
    torch.testing.assert_close(
        laid_out(model, some_pairs(), None), one_by_one(model, some_pairs()), rtol=1e-4, atol=1e-3
    )


def test_frequencies_that_the_longest_row_decides_keep_packs_to_shorter_rows():
    rope = {"rope_type": "longrope", "rope_theta": 10000.0, "factor": 2.0, "original_max_position_embeddings": 128}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [4.0] * 4, "partial_rotary_factor": 1.0}
    model = tiny_model("phi3", rope_parameters=rope, original_max_position_embeddings=128)
    assert "packs and rows one by one diverge" in why_not_packed(model)
    assert why_not_packed(model, longest=128) is None


def test_a_window_beyond_the_longest_probe_is_padded_unless_no_row_reaches_it():
    model = tiny_model("mistral", sliding_window=10_000, max_position_embeddings=32_768)
    assert "its sliding_window of 10000 is longer than the 8192 tokens that are tried" in why_not_packed(model)
    assert why_not_packed(model, longest=4096) is None


@pytest.mark.parametrize(
    "error", [KeyError("x"), NotImplementedError(), AssertionError("a\nb"), torch.OutOfMemoryError("full")]
)
def test_no_exception_of_a_model_ends_a_run(error):
    model = tiny_model("llama")

    def fail(*args):
        raise error

    model.model.layers[0].register_forward_pre_hook(fail)
    assert f"the model does not take them ({type(error).__name__}" in why_not_packed(model)


def test_an_interrupt_ends_it():
    model = tiny_model("llama")

    def interrupt(*args):
        raise KeyboardInterrupt

    model.model.layers[0].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        why_not_packed(model)


def test_a_model_is_as_before_after_the_proof():
    model = tiny_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5).train()
    model.transformer.h[0].eval()
    for param in model.parameters():
        param.grad = torch.ones_like(param)
    modes, random = [module.training for module in model.modules()], torch.get_rng_state()
    assert why_not_packed(model) is None  # dropout in training is no difference
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    assert all((param.grad == 1).all() and param.requires_grad for param in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("depends", [False, True])
def test_kernels_that_sum_otherwise_for_other_tokens_leak_nothing_but_a_derivative_does(depends):
    """All tokens get a few bits that depend on all others, as from an expert that more of them go to."""
    model = tiny_model("llama")

    def add(module, args, output):
        return output + 1e-6 * (output if depends else output.detach()).mean(dim=1, keepdim=True)

    model.model.layers[0].mlp.register_forward_hook(add)
    reason = why_not_packed(model)
    assert ("other tokens in one response move" in reason) if depends else reason is None
    assert _depends(model) == depends
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.parametrize("lora", [None, LoRA(r=4)])
def test_a_head_that_does_more_than_is_known_is_found(llama_dir, lora):
    policy = PretrainedPolicy(llama_dir, lora=lora).load()
    assert why_not_split(policy) is None
    causal = causal_model(policy)
    own = causal.forward
    causal.forward = wraps(own)(lambda *args, **kwargs: _halved(own(*args, **kwargs)))
    assert "log-probs differ by" in why_not_split(policy)
    assert all(module.training for module in policy.modules())


def _halved(output):
    output.logits = output.logits / 2
    return output
