"""Bytes that two ranks send for an optimizer step, with and without an update of the reference, under DDP and FSDP2.

usage: python tests/benchmarks/bytes_sent.py --model DIR [--steps 6]

Two processes on the CPU with gloo; counted is what the loopback interface sends, of both of them; nothing else may use
it. Updates are soft, at each step, and nothing is logged.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

RUNS = {
    "DDP, LoRA": ("ddp", True, None),
    "DDP, full": ("ddp", False, None),
    "FSDP2, LoRA": ("fsdp2", True, None),
    "FSDP2, LoRA on NF4": ("fsdp2", True, "nf4"),
    "FSDP2, full": ("fsdp2", False, None),
}
FIRST = 2  # the steps before make buffers and connections


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--worker", choices=list(RUNS), help=argparse.SUPPRESS)
    parser.add_argument("--update", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work(args)
        return
    print("| | trained, MB | a step, MB | with an update, MB | the update, MB |")
    print("| --- | --- | --- | --- | --- |")
    for name in RUNS:
        found = [measured(args, name, update) for update in (0, 1)]
        plain, updated = (one["bytes"] / 1e6 for one in found)
        trained = found[0]["trained"] / 1e6
        print(f"| {name} | {trained:.1f} | {plain:.2f} | {updated:.2f} | {updated - plain:.2f} |", flush=True)


def measured(args: argparse.Namespace, name: str, update: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", __file__, "--model", args.model, "--steps", str(args.steps)]
    command += ["--worker", name, "--update", str(update)]
    run = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if run.returncode:
        sys.exit(run.stderr[-3000:])
    return json.loads(next(line for line in run.stdout.splitlines() if line.startswith("{")))


def work(args: argparse.Namespace) -> None:
    import torch
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.strategies import ModelParallelStrategy

    from lit_tr import PreferenceDataModule, PreferenceModule, SoftReferenceUpdate
    from lit_tr.embedded import SyntheticPairs
    from lit_tr.losses import DPO
    from lit_tr.policy import LoRA, PretrainedPolicy
    from lit_tr.reference import AdapterReference, CopyReference

    strategy, lora, quantize = RUNS[args.worker]

    class Sent(Callback):
        def on_train_batch_end(self, trainer: Any, *rest: Any) -> None:
            trainer.strategy.barrier()
            if trainer.global_step == FIRST:
                self.before = sent()
            if trainer.global_step == FIRST + args.steps and trainer.is_global_zero:
                params = trainer.lightning_module.policy.parameters()
                trained = sum(param.numel() * param.element_size() for param in params if param.requires_grad)
                print(json.dumps({"bytes": (sent() - self.before) / args.steps, "trained": trained}), flush=True)

    module = PreferenceModule(
        PretrainedPolicy(args.model, lora=LoRA(r=16) if lora else None, quantize=quantize),
        AdapterReference() if lora else CopyReference(),
        DPO(),
        lambda params: torch.optim.SGD(params, lr=1e-4),
        log_initial=False,
    )
    updates = [SoftReferenceUpdate()] if args.update else []
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp" if strategy == "ddp" else ModelParallelStrategy(2, 1),
        max_steps=FIRST + args.steps,
        callbacks=[*updates, Sent()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, PreferenceDataModule(args.model, SyntheticPairs(64), batch_size=1))


def sent() -> int:
    line = next(line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


if __name__ == "__main__":
    main()
