"""Time of forward and backward pass against the tokens of a pack: a token costs the same in a short and a long one.

usage: python tests/benchmarks/scaling.py [--model DIR] [--device cuda] [--dtype float32] [--prompt 64] [--response 64]
           [--tokens 512 1024 2048 4096 8192 16384 32768] [--repeats 3]

Packs are filled with pairs of random tokens, each of one prompt and two responses. Without --model it is a Llama of 3
million parameters with random weights. The least time of some repeats counts. The optimizer's part of a step, which
depends on no tokens, is left out.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from lit_tr.data import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.policy.logprobs import response_log_probs

SMALL = LlamaConfig(
    vocab_size=8192,
    hidden_size=128,
    intermediate_size=384,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=32768,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="float32")
    parser.add_argument("--prompt", type=int, default=64)
    parser.add_argument("--response", type=int, default=64)
    parser.add_argument("--tokens", type=int, nargs="+", default=[2**power for power in range(9, 16)])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    model = load(args.model, getattr(torch, args.dtype)).to(args.device).train()
    rows = []
    for tokens in args.tokens:
        batch = pack(model.config.vocab_size, tokens, args.prompt, args.response).to(args.device)
        size = batch.input_ids.numel()
        rows.append((size, least_time(lambda batch=batch: step(model, batch), args.device, args.repeats)))
    best = min(seconds / size for size, seconds in rows)
    print("| tokens | seconds | microseconds a token | of the least |\n| --- | --- | --- | --- |")
    for size, seconds in rows:
        print(f"| {size} | {seconds:.3f} | {seconds / size * 1e6:.1f} | {seconds / size / best:.2f} |")


def load(path: str | None, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    if path is None:
        return AutoModelForCausalLM.from_config(SMALL, dtype=dtype)
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype)


def pack(vocabulary: int, tokens: int, prompt: int, response: int):
    """Return a pack of as many pairs as fit."""
    draw = torch.Generator().manual_seed(0)

    def ids(count: int) -> list[int]:
        return torch.randint(0, vocabulary, (count,), generator=draw).tolist()

    count = max(tokens // (prompt + 2 * response), 1)
    return Collator()([TokenizedExample(ids(prompt), ids(response), ids(response)) for _ in range(count)])


def step(model: nn.Module, batch) -> None:
    model.zero_grad()
    response_log_probs(model, batch).sum().backward()


def least_time(run: Callable[[], None], device: str, repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        start = now(device)
        run()
        times.append(now(device) - start)
    return min(times)


def now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
