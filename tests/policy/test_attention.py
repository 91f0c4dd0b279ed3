"""lit_tr's attention beside transformers' own: when it acts, dropout, what it refuses, and the backward pass."""

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lit_tr.data.collator import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.policy.attention import flexible, packed_attention, placeholder_mask
from lit_tr.policy.logprobs import response_log_probs
from tests.data.test_groups import by_definition
from tests.policy.causal_types import tiny_model

PAIRS = [TokenizedExample([30] * 12, [31, 32, 33], [34, 35]), TokenizedExample([40], [41, 42], [43])]


def heads(tokens):
    torch.manual_seed(0)
    return [torch.randn(1, 4, tokens, 8) for _ in range(3)]


def test_other_models_have_the_attention_that_they_had():
    tensors, module = heads(16), torch.nn.Module()
    found = ALL_ATTENTION_FUNCTIONS.get_interface("sdpa", None)
    assert torch.equal(found(module, *tensors, None)[0], sdpa_attention_forward(module, *tensors, None)[0])
    assert ALL_ATTENTION_FUNCTIONS.get_interface("eager", len).args == (len,)
    flash = ALL_ATTENTION_FUNCTIONS.get_interface("flash_attention_2", None)
    assert flash is ALL_ATTENTION_FUNCTIONS["flash_attention_2"]
    with pytest.raises(KeyError, match="not a valid attention implementation"):
        ALL_ATTENTION_FUNCTIONS.get_interface("no such", None)


def test_dropout_leaves_out_what_a_token_sees_and_keeps_the_mean():
    packing = Collator()(PAIRS).packing
    query, key, value = heads(len(packing.segment_ids))
    plain, _ = packed_attention(sdpa_attention_forward, None, query, key, value, None, packing)
    dropped = [
        packed_attention(sdpa_attention_forward, None, query, key, value, None, packing, dropout=0.3)[0]
        for _ in range(2000)
    ]
    assert not torch.equal(dropped[0], dropped[1])
    torch.testing.assert_close(torch.stack(dropped).mean(dim=0), plain, rtol=0, atol=0.1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_with_attention_dropout_trains_on_packs(attention):
    model = tiny_model("gpt2", attn_pdrop=0.5, resid_pdrop=0.0, embd_pdrop=0.0).train()
    model.set_attn_implementation(attention)
    first, second = (response_log_probs(model, Collator()(PAIRS)) for _ in range(2))
    assert not torch.equal(first, second)
    first.sum().backward()
    assert all(param.grad.isfinite().all() for param in model.parameters() if param.grad is not None)


@pytest.mark.parametrize(
    ("kind", "attention"), [("llama", "sdpa"), ("llama", "eager"), ("gemma2", "eager"), ("gpt_oss", "eager")]
)
def test_checkpointed_layers_attend_to_packs_again_in_the_backward_pass(kind, attention):
    model, batch = tiny_model(kind), Collator()(PAIRS)
    model.set_attn_implementation(attention)
    gradients = []
    for checkpointed in (False, True):
        model.zero_grad()
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
        response_log_probs(model, batch).sum().backward()
        gradients.append({name: param.grad for name, param in model.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradient, gradients[1][name]) for name, gradient in gradients[0].items())


@pytest.mark.parametrize(
    ("mask", "options", "reason"),
    [
        (torch.zeros(1, 1, 20, 20), {}, "change the attention mask"),
        (None, {"position_bias": torch.zeros(1, 4, 20, 20)}, "position bias"),
        (None, {"softcap": 30.0}, "neither caps nor sinks"),
        (None, {"s_aux": torch.zeros(4)}, "neither caps nor sinks"),
    ],
)
def test_what_a_pack_would_lose_is_refused(mask, options, reason):
    packing = Collator()(PAIRS).packing
    tensors = heads(len(packing.segment_ids))
    with pytest.raises(NotImplementedError, match=reason):
        packed_attention(sdpa_attention_forward, None, *tensors, mask, packing, **options)


def test_the_placeholder_is_no_mask():
    packing = Collator()(PAIRS).packing
    tensors = heads(len(packing.segment_ids))
    with_it, without = (
        packed_attention(sdpa_attention_forward, None, *tensors, mask, packing)[0]
        for mask in (placeholder_mask(torch.ones(1, 4)), None)
    )
    assert torch.equal(with_it, without)


def by_hand(query, key, value, packing, window, softcap, sinks):
    """Attention in float64 by its definition, over all pairs of tokens."""
    query, key, value = (tensor[0].double() for tensor in (query, key, value))
    key, value = (tensor.repeat_interleave(len(query) // len(tensor), dim=0) for tensor in (key, value))
    scores = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    seen = torch.from_numpy(by_definition(packing, window))
    scores = scores.masked_fill(~seen, -torch.inf)
    if sinks is not None:
        scores = torch.cat([scores, sinks.double()[:, None, None].expand(-1, len(seen), 1)], dim=2)
    return (scores.softmax(dim=2)[:, :, : len(seen)] @ value).transpose(0, 1)[None]


@pytest.mark.parametrize("key_heads", [6, 2])
@pytest.mark.parametrize(
    ("window", "softcap", "sinks"), [(None, None, False), (7, None, False), (None, 2.0, False), (7, None, True)]
)
def test_flexible_attention_is_attention_by_its_definition(key_heads, window, softcap, sinks):
    packing = Collator()(PAIRS).packing
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, count, len(packing.positions), 16) for count in (6, key_heads, key_heads))
    sinks = torch.randn(6) if sinks else None
    ours = flexible(query, key, value, packing.block_mask(window), "", str(softcap or ""), sinks)
    expected = by_hand(query, key, value, packing, window, softcap, sinks)
    torch.testing.assert_close(ours, expected.float(), rtol=1e-4, atol=1e-5)


def test_flexible_attention_takes_autocast_and_a_scale():
    packing = Collator()(PAIRS).packing
    query, key, value = heads(len(packing.positions))
    with torch.autocast("cpu", torch.bfloat16):  # as rotary embeddings leave them: queries and keys in float32
        ours = flexible(query, key, value.bfloat16(), packing.block_mask(), repr(0.25), "", torch.zeros(4))
    assert ours.dtype == torch.bfloat16
    expected = by_hand(query * 8**0.5 / 4, key, value, packing, None, None, torch.zeros(4))
    torch.testing.assert_close(ours.double(), expected, rtol=0.05, atol=0.05)
