"""Do rounds raise the gold reward? `lit-tr iterate --config iterate_embedded`, and its variants, over some seeds.

Prints for each round the mean over seeds of the proxy reward and of the gold reward on 149 held-out prompts, the KL
divergence from the initial policy, and the gold reward of each seed. Rounds that are done are not done again.

usage: python tests/benchmarks/iterate.py [--variants none raft moving cream ...] [--seeds 1 2 3] [--output runs/rounds]
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--variants", nargs="+", default=["none"], help="names in configs/iterate; none is the plain one"
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--output", type=Path, default=Path("runs/rounds"))
    options = parser.parse_args()
    for variant in options.variants:
        folders = [run(variant, seed, options.output) for seed in options.seeds]
        report(variant, [figures(folder) for folder in folders])


def run(variant: str, seed: int, output: Path) -> Path:
    """Make the rounds of a seed of prompts, sampling and training; return their folder."""
    folder, began = output / f"{variant}_seed{seed}", time.monotonic()
    command = [sys.executable, "-m", "lit_tr", "iterate", "--config", "iterate_embedded"]
    if variant != "none":
        command += ["--config", f"iterate/{variant}"]
    command += ["--output", str(folder), "--sampling.seed", str(seed), "--prompts.init_args.seed", str(seed)]
    log = folder.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise SystemExit(f"{variant}, seed {seed}: it failed, see {log}")
    print(f"{variant}, seed {seed}: {time.monotonic() - began:.0f} s", flush=True)
    return folder


def figures(folder: Path) -> list[dict]:
    files = sorted(folder.glob("round_*/round.json"), key=lambda file: int(file.parent.name.partition("_")[2]))
    return [json.loads(file.read_text()) for file in files]


def report(variant: str, seeds: list[list[dict]]) -> None:
    print(f"{variant:<12}  pairs  proxy    gold     KL      gold of each seed")
    for rounds in zip(*seeds, strict=False):
        pairs, proxy, gold, kl = (
            fmean(one.get(name, 0) for one in rounds) for name in ("pairs", "reward", "truth", "kl")
        )
        each = "  ".join(f"{one['truth']:.2f} ± {one['truth_standard_error']:.2f}" for one in rounds)
        print(f"round {rounds[0]['round']:<8}{pairs:5.0f}  {proxy:6.3f}  {gold:6.2f}  {kl:6.2f}    {each}")


if __name__ == "__main__":
    main()
