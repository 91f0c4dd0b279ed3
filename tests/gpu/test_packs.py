"""Packs against padded rows in float32 and bfloat16: log-probs and gradients of many kinds of attention."""

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoConfig, AutoModelForCausalLM

from lit_tr.data.collator import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.policy.logprobs import response_log_probs
from lit_tr.policy.probe import why_not_packed

WINDOW = {"sliding_window": 20}
CASES = {  # model type, head dimension, heads, key heads, more of the configuration
    "dimension_64": ("llama", 64, 4, 4, {}),
    "dimension_80": ("llama", 80, 4, 4, {}),
    "dimension_96": ("llama", 96, 4, 4, {}),
    "dimension_128_in_groups_of_4": ("llama", 128, 8, 2, {}),
    "dimension_128_in_groups_of_3": ("llama", 128, 6, 2, {}),
    "dimension_192": ("llama", 192, 2, 1, {}),
    "a_window": ("mistral", 128, 4, 2, WINDOW),
    "caps_and_a_window_at_dimension_256": ("gemma2", 256, 4, 2, {**WINDOW, "query_pre_attn_scalar": 256}),
    # all experts are taken, for a router's other choice in bfloat16 would hide what is measured
    "sinks_and_a_window": ("gpt_oss", 64, 4, 2, {**WINDOW, "num_local_experts": 2, "num_experts_per_tok": 2}),
}
LENGTHS = (  # prompt, chosen and rejected of the pairs of three packs
    [(40, 60, 33), (300, 21, 150)],
    [(128, 128, 128), (5, 700, 9), (77, 201, 99)],
    [(900, 350, 420), (64, 64, 1)],
)


def random_model(case, device):
    kind, dimension, heads, key_heads, more = CASES[case]
    shape = {"head_dim": dimension, "num_attention_heads": heads, "num_key_value_heads": key_heads, **more}
    size = {"vocab_size": 512, "hidden_size": 192, "intermediate_size": 256, "num_hidden_layers": 2}
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind, **size, **shape, max_position_embeddings=2048, initializer_range=0.1, pad_token_id=0
    )
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).to(device).train()


def packs(device):
    draw = torch.Generator().manual_seed(0)
    shorter = 1 if device == "cuda" else 16

    def ids(count):
        return torch.randint(3, 500, (-(-count // shorter),), generator=draw).tolist()

    for lengths in LENGTHS:
        yield Collator()([TokenizedExample(*map(ids, pair)) for pair in lengths])


def scored(model, batch, half):
    """Log-probs of the responses, and all gradients of their sum, in float64."""
    model.zero_grad()
    with torch.autocast(batch.input_ids.device.type, dtype=torch.bfloat16, enabled=half):
        log_probs = response_log_probs(model, batch)
    log_probs.sum().backward()
    gradients = [param.grad.flatten() for param in model.parameters() if param.grad is not None]
    return log_probs.detach().double(), torch.cat(gradients).double()


def largest_errors(model, batches, device, half):
    """Return how far packed and padded rows, in one precision, are from padded rows in float32.

    Each is the largest of the batches: of a log-prob in nats, and of the gradient by its norm.
    """
    errors = {}
    for batch in batches:
        truth, true_gradient = scored(model, batch.padded().to(device), half=False)
        for layout, one in (("packed", batch), ("padded", batch.padded())):
            log_probs, gradient = scored(model, one.to(device), half)
            off = (log_probs - truth).abs().max(), (gradient - true_gradient).norm() / true_gradient.norm()
            errors[layout] = [max(*pair) for pair in zip(errors.get(layout, (0, 0)), map(float, off), strict=True)]
    return errors


@pytest.mark.parametrize("case", CASES)
def test_packs_are_padded_rows(case, device, record):
    model, batches = random_model(case, device), list(packs(device))
    assert why_not_packed(model) is None
    whole = largest_errors(model, batches, device, half=False)["packed"]
    half = largest_errors(model, batches, device, half=True)
    record(float32_nats=whole[0], float32_gradient=whole[1])
    record(bfloat16_gradient_packed=half["packed"][1], bfloat16_gradient_padded=half["padded"][1])
    record(graphs=counters["stats"]["unique_graphs"])
    assert whole[0] < 1e-2
    assert whole[1] < 3e-3
    assert half["packed"][0] < 2 * half["padded"][0] + 0.1
    assert half["packed"][1] < 1.5 * half["padded"][1] + 1e-3
