"""Packs against padded rows where FlexAttention computes them: log-probs, gradients, graphs. Two cases run anywhere."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch._dynamo.utils import counters
from transformers import AutoConfig, AutoModelForCausalLM

from lit_tr.data.collator import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.policy import compiled
from lit_tr.policy.logprobs import response_log_probs, scoring
from lit_tr.policy.probe import why_not_packed

GPU = pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))
WINDOW = {"sliding_window": 100}
CASES = {  # type, head dimension, heads, key heads, more of its configuration
    "d64": ("llama", 64, 4, 4, {}),
    "d80": ("llama", 80, 4, 4, {}),
    "d96": ("llama", 96, 4, 2, {}),
    "d128 grouped": ("llama", 128, 8, 2, {}),
    "six heads": ("llama", 128, 6, 2, {}),
    "d256": ("llama", 256, 4, 1, {}),
    "window": ("mistral", 128, 4, 2, WINDOW),
    "caps": ("gemma2", 256, 4, 2, {**WINDOW, "query_pre_attn_scalar": 256, "attn_logit_softcapping": 5.0}),
    "sinks": ("gpt_oss", 64, 4, 2, {**WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}),
}
LENGTHS = [[(40, 60, 33), (300, 21, 150)], [(128, 128, 128), (5, 700, 9), (77, 201, 99)], [(1, 2, 3)]]
"""Tokens of prompt, chosen and rejected response of each pair of each batch."""


@pytest.fixture(autouse=True)
def compiled_anew():
    torch._dynamo.reset()
    counters.clear()
    compiled.fallbacks()


def random_model(case, device):
    kind, dim, heads, key_heads, more = CASES[case]
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=512,
        hidden_size=dim * heads,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=dim,
        pad_token_id=0,
        **more,
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device).train()


def batches(device, lengths=LENGTHS):
    draw = torch.Generator().manual_seed(0)

    def ids(count):
        return torch.randint(3, 500, (count,), generator=draw).tolist()

    return [Collator()([TokenizedExample(*map(ids, pair)) for pair in pairs]).to(device) for pairs in lengths]


def scored(model, batch, dtype):
    """Log-probs, and the gradient of a sum that weighs each response otherwise, in float64."""
    model.zero_grad()
    device = batch.lengths.device
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
        log_probs = response_log_probs(model, batch)
    (log_probs * torch.linspace(-1, 2, len(log_probs), device=device)).sum().backward()
    gradients = [param.grad.flatten().double() for param in model.parameters() if param.grad is not None]
    return log_probs.detach().double(), torch.cat(gradients)


def off(values, exact):
    """How far log-probs and gradients are from others, relative to these."""
    return [((one - other).norm() / other.norm()).item() for one, other in zip(values, exact, strict=True)]


@pytest.mark.parametrize(
    ("device", "cases"),
    [("cpu", ["window"]), *(pytest.param(*GPU.values, [case], marks=GPU.marks, id=case) for case in CASES)],
)
def test_packs_are_padded_rows_in_float32_and_no_worse_in_bfloat16(device, cases):
    for case in cases:
        model = random_model(case, device)
        assert why_not_packed(model) is None
        for batch in batches(device, LENGTHS if device == "cuda" else LENGTHS[:1]):
            exact = scored(model, batch.padded(), torch.float32)
            assert max(off(scored(model, batch, torch.float32), exact)) < 3e-3  # TF32, where it is on
            if device == "cuda":
                ours, theirs = (off(scored(model, one, torch.bfloat16), exact) for one in (batch, batch.padded()))
                assert all(our < 1.5 * their + 1e-3 for our, their in zip(ours, theirs, strict=True))
        assert compiled.fallbacks() is None


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_one_compiled_attention_serves_a_lora_on_queries_and_values_in_layers_of_two_kinds(device):
    model = get_peft_model(random_model("caps", device), LoraConfig(target_modules=["q_proj", "v_proj"]))
    graphs = []
    for batch in batches(device, LENGTHS[:2] if device == "cuda" else [[(4, 3, 2)]]):
        with scoring(model):
            response_log_probs(model, batch)
        response_log_probs(model, batch).sum().backward()
        graphs.append(counters["stats"]["unique_graphs"])
    assert compiled.fallbacks() is None
    assert max(graphs) == graphs[0] <= 8  # a batch of another size and windows take no more of them
    assert device == "cpu" or graphs[0] > 0


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_attention_dropout_trains_on_packs(device):
    config = AutoConfig.for_model("gpt2", vocab_size=512, n_embd=64, n_layer=2, n_head=2, attn_pdrop=0.5)
    model = AutoModelForCausalLM.from_config(config).to(device).train()
    assert why_not_packed(model) is None
    batch = batches(device, LENGTHS[:1])[0]
    first, second = (response_log_probs(model, batch) for _ in range(2))
    assert not torch.equal(first, second)
    first.sum().backward()
    assert all(param.grad.isfinite().all() for param in model.parameters() if param.grad is not None)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_a_block_mask_waits_for_no_device(device):
    packing = batches(device, LENGTHS[:1])[0].packing
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("error")
    mask = packing.block_mask(100)
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("default")
    assert mask.kv_num_blocks.device.type == device
    assert mask.shape[-1] == len(packing.positions)
