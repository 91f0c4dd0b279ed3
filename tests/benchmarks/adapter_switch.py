"""Host time to score with another adapter, beside the forward pass: what a GPU would wait for.

usage: python tests/benchmarks/adapter_switch.py [--layers 32] [--passes 20]

The model has as many modules as Llama 3 8B with LoRA on all its linear layers, and tiny widths.
"""

import argparse
import statistics
import time

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from lit_tr.policy.adapters import adapter_switched, add_adapter_copy
from lit_tr.policy.logprobs import scoring


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--passes", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(2)
    tiny = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(num_hidden_layers=args.layers, num_key_value_heads=2, **tiny))
    policy = get_peft_model(base, LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.05)).train()
    add_adapter_copy(policy, "reference")
    print(f"{args.layers} layers, {len(list(policy.modules()))} modules")
    for name in ("reference", None):
        print(f"to score with adapter {name}: {1000 * _median(policy, name, args.passes):.2f} ms")


def _median(policy: torch.nn.Module, name: str | None, passes: int) -> float:
    times = []
    for _ in range(passes):
        start = time.perf_counter()
        with adapter_switched(policy, name), scoring(policy):
            pass
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
