"""Time of a reference update beside that of a training step.

usage: python tests/benchmarks/reference_update.py --model DIR [--repeats 7] [--dtype float32] [--only TEXT]

A step is forward and backward pass of the policy, forward pass of the reference and fused AdamW, on a pack of 4 pairs
of random tokens, about 550 in all, in bfloat16 (--dtype float32 where a CPU multiplies no bfloat16: averages then
need no low-order bits). Steps and updates are timed in turn. --only takes the kinds whose titles hold a text.
"""

import argparse
import math
import time
from collections.abc import Callable
from statistics import median

import torch

from lit_tr import PreferenceModule
from lit_tr.data import Collator
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.losses import DPO
from lit_tr.policy import LoRA, PretrainedPolicy, response_log_probs
from lit_tr.reference import AdapterReference, CopyReference
from lit_tr.reference.base import Reference

KINDS: dict[str, tuple[Callable[[], Reference], LoRA | None, float]] = {
    "CopyReference, hard": (CopyReference, None, 1.0),
    "CopyReference, soft, plain bfloat16": (lambda: CopyReference("plain"), None, 0.6),
    "CopyReference, soft, low-order bits": (CopyReference, None, 0.6),
    "CopyReference, soft, master weights": (lambda: CopyReference("master"), None, 0.6),
    "AdapterReference, hard": (AdapterReference, LoRA(r=16), 1.0),
    "AdapterReference, soft, by factors": (lambda: AdapterReference("factors"), LoRA(r=16), 0.6),
    "AdapterReference, soft, by weights": (AdapterReference, LoRA(r=16), 0.6),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    print("| | a step | an update | of a step | 1 % of the time or less at every_n_steps of |")
    print("| --- | --- | --- | --- | --- |")
    for title, (make, lora, alpha) in KINDS.items():
        if args.only not in title:
            continue
        step, update = measure(args, make(), lora, alpha)
        share = update / step
        print(f"| {title} | {step:.2f} s | {update:.4f} s | {share:.1%} | {math.ceil(share * 100)} |", flush=True)


def measure(args: argparse.Namespace, reference: Reference, lora: LoRA | None, alpha: float) -> tuple[float, float]:
    torch.manual_seed(0)
    module = PreferenceModule(PretrainedPolicy(args.model, dtype=args.dtype, lora=lora), reference, DPO())
    module.configure_model()
    trained = [param for param in module.policy.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    batch = Collator()([TokenizedExample(ids(88), ids(25), ids(25)) for _ in range(4)])

    def step() -> None:
        reference_log_probs = reference.log_probs(module.policy, batch)
        chosen, rejected, _ = batch.split(response_log_probs(module.policy, batch) - reference_log_probs)
        (rejected - chosen).mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()  # warm-up
    reference.update(module.policy, alpha)
    steps, updates = [], []
    for _ in range(args.repeats):
        steps.append(seconds(step))
        updates.append(seconds(lambda: reference.update(module.policy, alpha)))
    return median(steps), median(updates)


def ids(count: int) -> list[int]:
    return torch.randint(1000, 40000, (count,)).tolist()


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
