"""Peak memory of hard updates with a second model and with WindowReference.

usage: python tests/benchmarks/window_memory.py --model DIR --data FILE [--pairs 4] [--steps 4] [--tau 2]
           [--dtype float32] [--max-length 128]

Each reference trains in a process of its own, on the same HH rows in the same order, with fused AdamW. Memory is the
peak of what is resident. Losses must be the same.
"""

import argparse
import json
import os
import subprocess
import sys

KINDS = ("CopyReference", "WindowReference")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tau", type=int, default=2)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--worker", choices=KINDS)
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(train(args)))
    else:
        compare()


def compare() -> None:
    copy, window = (run(kind) for kind in KINDS)
    for kind, result in zip(KINDS, (copy, window), strict=True):
        losses = ", ".join(f"{loss:.6f}" for loss in result["losses"])
        print(f"{kind}: peak memory {result['peak'] / 1e9:.3f} GB, {result['seconds']:.1f} s; losses {losses}")
    saved, model = copy["peak"] - window["peak"], copy["model"]
    print(f"WindowReference takes {saved / 1e9:.3f} GB less: {saved / model:.2f} of the model's {model / 1e9:.3f} GB")
    print(f"greatest difference of a loss: {max(map(difference, copy['losses'], window['losses'])):.1e}")


def difference(one: float, other: float) -> float:
    return abs(one - other)


def run(kind: str) -> dict:
    command = [sys.executable, __file__, *sys.argv[1:], f"--worker={kind}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the run of {kind} failed")
    return {**json.loads(output.splitlines()[-1]), "peak": usage.ru_maxrss * 1024}


def train(args: argparse.Namespace) -> dict:
    import time

    import torch
    from lightning.pytorch import Trainer

    from lit_tr import HardReferenceUpdate, PreferenceDataModule, PreferenceModule
    from lit_tr.data import Rows
    from lit_tr.losses import DPO
    from lit_tr.policy import PretrainedPolicy
    from lit_tr.reference import CopyReference, WindowReference

    losses = []

    class Recorded(PreferenceModule):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            losses.append(loss.item())
            return loss

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    kinds = {"CopyReference": CopyReference, "WindowReference": WindowReference}
    module = Recorded(
        PretrainedPolicy(args.model, dtype=args.dtype),
        kinds[args.worker](),
        DPO(beta=0.05),
        optimizer=lambda params: torch.optim.AdamW(params, lr=1e-6, fused=True),
        log_initial=False,
    )
    rows = Rows(args.data, split=f"train[:{args.pairs * (args.steps + args.tau)}]", chat=False)
    data = PreferenceDataModule(args.model, rows, batch_size=args.pairs, max_length=args.max_length, shuffle=False)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=args.steps,
        callbacks=[HardReferenceUpdate(every_n_steps=args.tau)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    start = time.perf_counter()
    trainer.fit(module, data)
    size = sum(param.numel() * param.element_size() for param in module.policy.parameters())
    return {"losses": losses, "model": size, "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    main()
