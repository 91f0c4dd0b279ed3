"""Does the mean of a proxy reward order policies as the mean gold reward does? The measure of Kim and Seo 2024.

Spearman's rank correlation over the policies that `tests/benchmarks/frontier.py` trained, for each seed: of the
white-box reward, whole, with each factor left out, and with what closes its hazards. `lit-tr report OUTPUT` draws the
mean scores, and shows responses with the features of their scores.

usage: python tests/benchmarks/proxy_reward.py [--runs runs/frontier] [--output runs/proxy_reward]
"""

import argparse
import io
import json
from collections import defaultdict
from contextlib import redirect_stdout
from pathlib import Path

from lit_tr.commands import main as lit_tr
from lit_tr.evaluation.seeds import mean_of

REWARDS = {
    "whole": [],
    "without_length": ["--reward.length=0"],
    "without_relevance": ["--reward.relevance=0"],
    "without_repetition": ["--reward.repetition=0"],
    "with_copying": ["--reward.copying=1"],
    "with_length_up_to_20_tokens": ["--reward.longest=20"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--output", type=Path, default=Path("runs/proxy_reward"))
    args = parser.parse_args()
    runs = args.runs
    by_seed = files(runs)
    if not by_seed:
        raise SystemExit(f"{runs}: no run of three or more policies of a seed; run tests/benchmarks/frontier.py first")
    correlations = {seed: of_seed(those, args.output / f"seed{seed}") for seed, those in by_seed.items()}
    print("policies of each seed: " + ", ".join(f"{seed}: {len(those)}" for seed, those in by_seed.items()))
    for name in REWARDS:
        rhos = [found[name] for found in correlations.values()]
        mean = mean_of(rhos)
        print(f"{name:<30}{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]  {' '.join(f'{rho:.2f}' for rho in rhos)}")


def files(runs: Path) -> dict[str, list[Path]]:
    """Return the generations of each seed's policies, those of the initial policy with them if there are some."""
    found: dict[str, list[Path]] = defaultdict(list)
    for file in sorted(runs.glob("*_seed*/generations.jsonl")):
        found[file.parent.name.rpartition("_seed")[2]].append(file)
    initial = [file for file in [runs / "initial.jsonl"] if file.exists()]
    return {seed: [*those, *initial] for seed, those in sorted(found.items()) if len(those) >= 3}


def of_seed(those: list[Path], output: Path) -> dict[str, float]:
    """Return the correlation of each reward over some policies; their scores are written."""
    rewards = ["--reward=lit_tr.rewards.WhiteBox", "--against=lit_tr.rewards.Gold"]
    for name, options in REWARDS.items():
        with redirect_stdout(io.StringIO()):
            lit_tr(["score", *map(str, those), *rewards, *options, f"--output={output / name}"])
        for file in () if name == "whole" else (output / name).glob("*.jsonl"):
            file.unlink()  # the responses are those of "whole"
    found = {name: json.loads((output / name / "scores.json").read_text()) for name in REWARDS}
    return {name: one["spearman"]["policies"]["rho"] for name, one in found.items()}


if __name__ == "__main__":
    main()
