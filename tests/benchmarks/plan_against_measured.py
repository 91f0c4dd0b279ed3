"""The memory that `lit-tr plan` foretells against what training takes on the CPU.

usage: python tests/benchmarks/plan_against_measured.py --model DIR [--pairs 4] [--words 60] [--steps 2]
           [--malloc] [--only NAME]

Each run trains in a process of its own, on pairs of one length. Measured is the peak of what is resident, less what the
process held when all was imported and the rows were read. glibc is told to return what is freed
(MALLOC_MMAP_THRESHOLD_); with --malloc it does as it likes, and holds about a tenth more.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FULL, LORA = {"reference": "CopyReference"}, {"reference": "AdapterReference", "lora": True}
RUNS = {
    "full, float32, Copy": FULL,
    "full, bfloat16, Copy": {**FULL, "dtype": "bfloat16"},
    "full, bfloat16, Copy, soft updates": {**FULL, "dtype": "bfloat16", "alpha": 0.5},
    "full, float32, Window": {"reference": "WindowReference"},
    "full, bf16-mixed, Copy in nf4": {**FULL, "options": {"dtype": "nf4"}, "precision": "bf16-mixed"},
    "full, float32, Copy, checkpointing": {**FULL, "checkpointing": True},
    "full, float32, Copy, padded": {**FULL, "packed": False},
    "LoRA, float32, Adapter": LORA,
    "LoRA on NF4, bf16-mixed, Adapter": {**LORA, "dtype": "bfloat16", "quantize": "nf4", "precision": "bf16-mixed"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--words", type=int, default=60, help="of a prompt and of each response")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--malloc", action="store_true")
    parser.add_argument("--only", choices=list(RUNS))
    parser.add_argument("--worker", choices=("plan", "train"))
    args = parser.parse_args()
    if args.worker:
        print(json.dumps({"plan": plan, "train": train}[args.worker](args, RUNS[args.only])))
        return
    print("| | planned | measured | planned / measured | before the model |")
    print("| --- | --- | --- | --- | --- |")
    for name in [args.only] if args.only else RUNS:
        planned, measured = worker(name, "plan", args), worker(name, "train", args)
        peak = measured["peak"] - measured["before"]
        figures = f"{planned['total'] / 1e9:.2f} GB | {peak / 1e9:.2f} GB | {planned['total'] / peak:.2f}"
        print(f"| {name} | {figures} | {measured['before'] / 1e9:.2f} GB |", flush=True)


def worker(name: str, kind: str, args: argparse.Namespace) -> dict:
    environment = os.environ | ({} if args.malloc else {"MALLOC_MMAP_THRESHOLD_": "65536"})
    command = [sys.executable, __file__, *sys.argv[1:], f"--only={name}", f"--worker={kind}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    output, errors = process.communicate()
    if process.returncode:
        sys.exit(f"{kind} of {name} failed: {errors}")
    return json.loads(output.splitlines()[-1])


def modules(args: argparse.Namespace, run: dict) -> tuple:
    """Return the module and the data."""
    from lit_tr import PreferenceDataModule, PreferenceModule, reference
    from lit_tr.data import Rows
    from lit_tr.losses import DPO
    from lit_tr.policy.loading import LoRA, PretrainedPolicy

    def text(start: str) -> str:
        return f"{start}{' river' * args.words}"

    count = args.pairs * args.steps * 2
    rows = [{"prompt": text(f"{i}"), "chosen": text(" A"), "rejected": text(" B")} for i in range(count)]
    path = Path(tempfile.mkdtemp()) / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = PretrainedPolicy(
        args.model,
        dtype=run.get("dtype", "float32"),
        quantize=run.get("quantize"),
        lora=LoRA() if run.get("lora") else None,
        gradient_checkpointing=run.get("checkpointing", False),
    )
    data = PreferenceDataModule(
        args.model, Rows(str(path), chat=False), batch_size=args.pairs, packed=run.get("packed", True)
    )
    data.setup("fit")
    held = getattr(reference, run["reference"])(**run.get("options", {}))
    return PreferenceModule(source, held, DPO(beta=0.05)), data


def plan(args: argparse.Namespace, run: dict) -> dict:
    from dataclasses import asdict

    from lit_tr.planning import Plan, Run

    module, data = modules(args, run)
    planned = Plan(Run(module.source, alpha=run.get("alpha", 1.0), precision=run.get("precision", "32-true"), cpu=True))
    batch = data.collator(data.examples["train"][: args.pairs])
    memory = planned.at_peak(planned.between_steps(module.reference, module.initial), planned.step(batch))
    return {**asdict(memory), "total": memory.total}


def train(args: argparse.Namespace, run: dict) -> dict:
    import resource

    import torch
    from lightning.pytorch import Trainer

    from lit_tr import HardReferenceUpdate, SoftReferenceUpdate

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    module, data = modules(args, run)
    update = SoftReferenceUpdate(run["alpha"], 2) if "alpha" in run else HardReferenceUpdate(2)
    trainer = Trainer(
        accelerator="cpu",
        precision=run.get("precision", "32-true"),
        max_steps=args.steps,
        callbacks=[update],
        log_every_n_steps=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    trainer.fit(module, data)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak": peak, "before": pages * os.sysconf("SC_PAGE_SIZE")}


if __name__ == "__main__":
    main()
