"""Packs against padded rows: log-probs and gradients, on random models of many architectures, in float32."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import flex_attention
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from lit_tr.data.collator import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.policy import LoRA, PretrainedPolicy, logprobs
from lit_tr.policy.attention import packed_attention
from lit_tr.policy.logprobs import response_log_probs, scoring
from lit_tr.policy.probe import why_not_packed

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
KINDS = {
    "llama": {"tie_word_embeddings": True},
    "qwen3": {"head_dim": 8},
    "gpt_neox": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "mistral": {"sliding_window": 7, "head_dim": 8},
    "gemma3_text": {"sliding_window": 7, "head_dim": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "olmo2": {},
    "phi3": {},
    "qwen3_moe": {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "phi": {},  # a head with a bias
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
    "gemma4_text": {"head_dim": 8, "sliding_window": 7, "final_logit_softcapping": 3.0},
}
EAGER = {  # models that transformers computes with their own attention
    "gemma2": {"head_dim": 8, "sliding_window": 7, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    "gpt_oss": {"head_dim": 8, "sliding_window": 7, "num_local_experts": 4, "num_experts_per_tok": 2},
}
IDS = st.lists(st.integers(3, 96), min_size=1, max_size=24)


def random_model(kind, attention=None):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **{**SMALL, "initializer_range": 0.2, **(KINDS | EAGER)[kind]})
    attention = attention or ("eager" if kind in EAGER else "sdpa")
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    assert model.dtype == torch.float32
    return model


def scored(model, batch):
    """Log-probs, and the gradient of a sum that weighs each response otherwise."""
    model.zero_grad()
    log_probs = response_log_probs(model, batch)
    (log_probs * torch.linspace(-1, 2, len(log_probs))).sum().backward()
    return log_probs.detach(), {name: param.grad for name, param in model.named_parameters() if param.grad is not None}


def assert_equal_layouts(model, examples, mismatched=False):
    packed = Collator(mismatched=mismatched)(examples)
    padded = Collator(packed=False, mismatched=mismatched)(examples)
    (ours, our_gradients), (theirs, their_gradients) = scored(model, packed), scored(model, padded)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    scale = max(gradient.abs().max() for gradient in their_gradients.values())
    assert our_gradients.keys() == their_gradients.keys()
    for name, gradient in their_gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, rtol=1e-5, atol=1e-5 * scale.item(), msg=name)


@pytest.mark.parametrize("kind", KINDS | EAGER)
def test_packs_are_equal_to_padded_rows(kind):
    model = random_model(kind)
    ids = torch.randint(3, 97, (200,), generator=torch.Generator().manual_seed(1)).tolist()
    pairs = [
        TokenizedExample(ids[:60], ids[60:65], ids[65:105]),  # far past a window of 7
        TokenizedExample(ids[105:106], ids[106:107], ids[107:108]),  # one token each
        TokenizedExample(ids[108:120], ids[120:160], ids[160:163]),
    ]
    assert_equal_layouts(model, pairs)
    assert_equal_layouts(model, pairs[:1])
    assert why_not_packed(model) is None


@settings(max_examples=30, deadline=None)
@given(examples=st.lists(st.builds(TokenizedExample, IDS, IDS, IDS), min_size=1, max_size=4), mismatched=st.booleans())
def test_packs_of_any_shape(examples, mismatched):
    assert_equal_layouts(random_model("mistral"), examples, mismatched)


def test_packs_are_equal_to_padded_rows_where_some_tokens_are_context():
    chosen = [True, False, True], [False, False, True]
    pairs = [
        TokenizedExample([5, 6, 7], [8, 9, 10], [11, 12], chosen_scored=chosen[0], rejected_scored=[False, True]),
        TokenizedExample([13], [14, 15, 16], [17], chosen_scored=chosen[1]),
    ]
    assert_equal_layouts(random_model("mistral"), pairs, mismatched=True)


def test_context_is_seen_and_not_scored():
    model = random_model("llama")
    whole = TokenizedExample([5, 6], [7, 8, 9], [10])
    last = TokenizedExample([5, 6], [7, 8, 9], [10], chosen_scored=[False, False, True])
    first = TokenizedExample([5, 6], [7, 8], [10])
    of_whole, of_last, of_first = (response_log_probs(model, Collator()([one]))[0] for one in (whole, last, first))
    torch.testing.assert_close(of_last, of_whole - of_first)  # log p(9 | 7, 8)


@settings(max_examples=30, deadline=None)
@given(examples=st.lists(st.builds(TokenizedExample, IDS, IDS, IDS), min_size=1, max_size=4), mismatched=st.booleans())
def test_a_pack_padded_is_the_padded_batch(examples, mismatched):
    padded = Collator(packed=False, mismatched=mismatched)(examples)
    again = Collator(mismatched=mismatched)(examples).padded()
    torch.testing.assert_close(vars(padded.labels), vars(again.labels), rtol=0, atol=0, equal_nan=True)
    for name in vars(padded).keys() - {"labels"}:
        value, other = getattr(padded, name), getattr(again, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


def test_a_prompt_is_held_once_with_borrowed_responses_too():
    pairs = [TokenizedExample([5] * 10, [6], [7]), TokenizedExample([8] * 20, [9, 9], [10])]
    batch = Collator(mismatched=True)(pairs)
    # prompts 10 + 20, own responses 2 + 3, borrowed ones: 10 and 9-9 after the first prompt, 6 and 7 after the second
    assert batch.input_ids.shape == (1, 30 + 5 + 3 + 2)


def test_gradient_checkpointing_changes_nothing():
    model = random_model("llama")
    batch = Collator()([TokenizedExample([5, 6, 7], [8, 9], [10]), TokenizedExample([11], [12], [13, 14])])
    plain = scored(model, batch)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    again = scored(model, batch)
    assert torch.equal(plain[0], again[0])
    for name, gradient in plain[1].items():
        torch.testing.assert_close(again[1][name], gradient)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("options", [{}, {"lora": LoRA(r=4)}, {"lora": LoRA(r=4), "quantize": "nf4"}])
def test_policies_take_packs(llama_dir, options, dtype):
    assert why_not_packed(PretrainedPolicy(llama_dir, dtype=dtype, **options).load()) is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("wrong", "reason"),
    [("positions", "packs and rows one by one diverge"), ("segment_ids", "other tokens in one response move")],
)
def test_wrong_positions_and_masks_are_found_out_in_any_precision(llama_dir, monkeypatch, dtype, wrong, reason):
    right = logprobs._hidden

    def spoiled(causal, batch):
        values = {"positions": torch.arange(batch.input_ids.numel()), "segment_ids": batch.packing.segment_ids * 0}
        packing = replace(batch.packing, spans=None, **{wrong: values[wrong]})
        return right(causal, replace(batch, packing=packing))

    policy = PretrainedPolicy(llama_dir, dtype=dtype).load()
    monkeypatch.setattr(logprobs, "_hidden", spoiled)
    assert reason in why_not_packed(policy)


@pytest.mark.parametrize(
    ("kind", "options", "takes_packs"),
    [
        ("gpt_oss", EAGER["gpt_oss"], True),
        ("gemma2", EAGER["gemma2"], True),
        ("falcon", {"num_kv_heads": 4, "alibi": False}, False),  # an attention that cannot be chosen
        ("bloom", {"n_head": 4, "n_layer": 2}, False),  # position as a bias
        ("mpt", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256}, False),  # position as a bias, too
    ],
)
def test_padded_rows_are_scored_as_the_model_does_by_itself(tmp_path, kind, options, takes_packs):
    config = AutoConfig.for_model(kind, **{**SMALL, "initializer_range": 0.2, **options})
    torch.manual_seed(0)
    attention = "eager" if kind in EAGER else None  # transformers before 5.21 takes one that leaves out Gemma 2's caps
    own = AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()
    own.save_pretrained(tmp_path)
    policy = PretrainedPolicy(str(tmp_path), attention=attention).load()
    assert (why_not_packed(policy) is None) == takes_packs
    examples = [TokenizedExample([5, 6, 7, 8, 9, 10, 11, 12], [13, 14], [15]), TokenizedExample([16], [17], [18, 19])]
    padded = Collator()(examples).padded()
    with scoring(policy), torch.no_grad():
        rows = [(e.prompt, r) for r_of in ("chosen", "rejected") for e in examples for r in [getattr(e, r_of)]]
        for log_prob, (prompt, response) in zip(response_log_probs(policy, padded), rows, strict=True):
            logits = own(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
            expected = sum(logits[len(prompt) - 1 + i, token] for i, token in enumerate(response))
            torch.testing.assert_close(log_prob, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("window", [None, 7])
def test_the_block_mask_of_cuda_lets_through_what_the_masks_of_the_cpu_do(window):
    pairs = [TokenizedExample([5] * 20, [6] * 9, [7] * 30), TokenizedExample([8], [9], [10] * 200)]
    packing = Collator(mismatched=True)(pairs).packing
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, len(packing.segment_ids), 8) for _ in range(3))
    expected, _ = packed_attention(sdpa_attention_forward, None, query, key, value, None, packing, window)
    flexible = flex_attention(query, key, value, block_mask=packing.block_mask(window))
    torch.testing.assert_close(flexible.transpose(1, 2), expected)
    assert packing.block_mask(window) is packing.block_mask(window)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_either_attention_takes_packs(attention):
    assert why_not_packed(random_model("llama", attention)) is None


def test_another_attention_gets_padded_rows_and_a_reason():
    reason = "packs are computed for attention sdpa and eager, and the model has flex_attention"
    assert why_not_packed(random_model("llama", "flex_attention")) == reason
