"""Run the quickstart with several seeds, of pairs and of training: the rise of the gold reward beside its spread.

usage: python tests/benchmarks/quickstart_seeds.py [--seeds 1 2 3] [--output DIR]
"""

import argparse
import json
import subprocess
import time
from pathlib import Path
from statistics import mean, stdev


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, default=Path("runs/quickstart_seeds"))
    args = parser.parse_args()
    reports = {seed: run(seed, args.output / f"seed_{seed}") for seed in args.seeds}
    for figure in reports[args.seeds[0]]["after"]:
        sides = [[report[side][figure] for report in reports.values()] for side in ("before", "after")]
        print(f"{figure}: " + ", ".join(f"{before:.3f} -> {after:.3f}" for before, after in zip(*sides, strict=True)))
    rises = [report["after"]["gold reward"] - report["before"]["gold reward"] for report in reports.values()]
    print(f"rise of the gold reward: mean {mean(rises):.3f}, least {min(rises):.3f}, spread {stdev(rises):.3f}")
    print("seconds: " + ", ".join(f"{report['seconds']:.0f}" for report in reports.values()))


def run(seed: int, root: Path) -> dict:
    """Run the quickstart; return its report and its seconds."""
    start = time.perf_counter()
    options = [f"--seed_everything={seed}", f"--data.train.seed={seed}", f"--trainer.default_root_dir={root}"]
    quiet = ["--trainer.enable_progress_bar=false"]
    subprocess.run(["lit-tr", "fit", "--config=configs/quickstart.yaml", *options, *quiet], check=True)
    newest = max(root.rglob("report.json"), key=lambda path: path.stat().st_mtime)
    return {**json.loads(newest.read_text()), "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    main()
