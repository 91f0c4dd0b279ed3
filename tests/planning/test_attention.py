import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from lit_tr.data.batches import packed_batch
from lit_tr.planning.plan import Plan, Run
from lit_tr.policy.loading import PretrainedPolicy
from lit_tr.policy.logprobs import response_log_probs

LAYERS, WIDTH = 2, 32
LINEAR = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
"""Weights of a layer of the random Llama."""
ANGLES = 1e-3
"""Less than this share are the angles of rotations, which transformers makes by a matrix product before 5.24."""


def batch_of(*examples):
    """Return a pack of prompts with their responses, by lengths."""
    rows = [
        ([i, *[0] * (prompt - 1)], [0] * size, None) for i, (prompt, *sizes) in enumerate(examples) for size in sizes
    ]
    return packed_batch(rows, chosen=len(rows), rejected=0, mismatched=None, paired=False, labels=None)


def step_of(path, batch, cpu=False):
    return Plan(Run(PretrainedPolicy(path), cpu=cpu)).step(batch)


def attention_of(step, batch):
    """Return the FLOPs of attention in the forward and in the backward pass, less those of the linear layers."""
    tokens, scored = batch.input_ids.shape[1], len(batch.targets)
    layers, head = 2 * LAYERS * LINEAR * tokens, 2 * 512 * 32 * scored
    return step.forward - layers - head, step.flops - step.forward - 2 * layers - 3 * head


def test_blocks_of_a_pack_are_counted(llama_dir):
    batch = batch_of((128, 128, 128))  # the second response does not see the first: 1 + 2 + 2 blocks of 9
    product = LAYERS * 2 * WIDTH * 5 * 128**2
    assert attention_of(step_of(llama_dir, batch), batch) == pytest.approx((2 * product, 7 * product), rel=ANGLES)


@pytest.mark.parametrize("window", [None, 100])
def test_as_many_blocks_as_a_dense_mask_has(llama_dir, tmp_path, window):
    batch = batch_of((100, 300, 90), (350, 20, 210), (17, 40, 5))
    tokens = batch.input_ids.shape[1]
    size = -(-tokens // 128) * 128
    seen = torch.zeros(size, size, dtype=torch.bool)
    for group, (start, end) in enumerate(batch.packing.offsets):
        seen[start:end, start:end] = batch.packing.mask(group, torch.float32, window)[0, 0] == 0
    blocks = seen.view(size // 128, 128, size // 128, 128).any(dim=3).any(dim=1).sum().item()
    forward, _ = attention_of(step_of(windowed(llama_dir, tmp_path, window), batch), batch)
    assert forward == pytest.approx(LAYERS * 2 * 2 * WIDTH * blocks * 128**2, rel=ANGLES)


def windowed(llama_dir, tmp_path, window):
    """Return a folder with the configuration of the random Llama, or of a Mistral of its shapes with a window."""
    if window is None:
        return llama_dir
    shapes = LlamaConfig.from_pretrained(llama_dir).to_dict()
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    kept = {name: shapes[name] for name in (*names, "num_key_value_heads")}
    AutoConfig.for_model("mistral", **kept, sliding_window=window).save_pretrained(tmp_path)
    return str(tmp_path)


def test_a_cpu_computes_the_square_of_each_group_as_torch_counts_it(llama_dir):
    batch = batch_of((20, 30, 40), (10, 50, 20))
    model = AutoModelForCausalLM.from_pretrained(llama_dir)
    with FlopCounterMode(display=False) as counted:
        response_log_probs(model, batch)
    own = counted.get_total_flops() + attention_that_torch_leaves_out(counted)
    assert step_of(llama_dir, batch, cpu=True).forward == own


def attention_that_torch_leaves_out(counted):
    """Return the FLOPs of attention on the CPU, which torch counts from its release 2.14 on only."""
    names = map(str, counted.get_flop_counts()["Global"])
    if any("flash_attention_for_cpu" in name for name in names):
        return 0
    return LAYERS * 2 * 2 * WIDTH * (90**2 + 80**2)


def test_long_packs_take_what_their_tokens_take(llama_dir):
    short, long = (batch_of(*[(100, 500, 400)] * count) for count in (8, 64))
    peaks = [step_of(llama_dir, batch).activations for batch in (short, long)]
    assert peaks[1] == pytest.approx(8 * peaks[0], rel=0.05)  # a mask of all pairs of tokens would be 4 GB
