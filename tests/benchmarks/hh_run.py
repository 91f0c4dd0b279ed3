"""Run the two HH configs on a real model and real pairs, and print what their logs say.

usage: python tests/benchmarks/hh_run.py --model DIR --data FILE [--steps 50] [--only "full model" | QLoRA] [--output
DIR]

DIR is a model folder, FILE holds HH pairs; the first 200 rows are held out. Each config runs in processes of its own:
`validate` before training, then `fit` for some optimizer steps of 4 pairs with a validation at the end.
"""

import argparse
import csv
import os
import subprocess
import sys
from pathlib import Path

CONFIGS = {
    "full model": "configs/hh_tr_dpo.yaml",
    "QLoRA": "configs/hh_tr_dpo_qlora.yaml",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--only", choices=CONFIGS, nargs="+", default=list(CONFIGS))
    parser.add_argument("--output", type=Path, default=Path("runs/hh_run"))
    args = parser.parse_args()
    for name in args.only:
        root = args.output / name.replace(" ", "_")
        common = [
            f"--config={CONFIGS[name]}",
            f"--model.policy.path={args.model}",
            f"--data.train.path={args.data}",
            "--data.train.split=train[200:]",
            "--data.train.chat=false",
            "--data.val.chat=false",
            f"--data.val.path={args.data}",
            "--data.val.split=train[:200]",
        ]
        before, _ = run("validate", *common, f"--trainer.default_root_dir={root}/before")
        after, peak = run(
            "fit",
            *common,
            f"--trainer.default_root_dir={root}/after",
            f"--trainer.max_steps={args.steps}",
            f"--trainer.val_check_interval={args.steps}",
            "--trainer.num_sanity_val_steps=0",
            "--update.every_n_steps=10",
            "--trainer.profiler=SimpleProfiler",
            f"--trainer.profiler.dirpath={root}",
            "--trainer.profiler.filename=profile",
        )
        report(name, before, after, seconds_a_step(root / "fit-profile.txt"), peak)


def run(verb: str, *options: str) -> tuple[list[dict[str, str]], float]:
    """Run lit-tr; return the rows of its metrics.csv and its peak memory in GB."""
    process = subprocess.Popen(["lit-tr", verb, *options])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"lit-tr {verb} failed")
    root = next(option.split("=")[1] for option in options if option.startswith("--trainer.default_root_dir"))
    newest = max(Path(root).rglob("metrics.csv"), key=lambda path: path.stat().st_mtime)
    return list(csv.DictReader(newest.open())), usage.ru_maxrss / 1e6


def seconds_a_step(profile: Path) -> float:
    line = next(line for line in profile.read_text().splitlines() if "run_training_batch" in line)
    return float(line.split("|")[2])


def report(name: str, before: list, after: list, seconds: float, peak: float) -> None:
    print(f"\n{name}: {seconds:.2f} s a step, peak memory {peak:.2f} GB")
    for row in after:
        if row.get("train/loss"):
            figures = (
                "train/loss",
                "train/rewards/margins",
                "train/rewards/accuracies",
                "train/initial/rewards/margins",
            )
            print(f"  step {int(row['step']) + 1}:", ", ".join(f"{key} {float(row[key]):.4f}" for key in figures))
    names = ("loss", "rewards/margins", "rewards/accuracies", "initial/rewards/margins", "initial/rewards/accuracies")
    for figure in (*names, "logps/accuracies", "initial/log_ratios"):
        values = [
            next(float(row[f"val/{figure}"]) for row in rows if row.get(f"val/{figure}")) for rows in (before, after)
        ]
        print(f"  held out: {figure} before {values[0]:.4f}, after {values[1]:.4f}")


if __name__ == "__main__":
    main()
