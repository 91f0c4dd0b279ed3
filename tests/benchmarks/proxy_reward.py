"""Does the mean of a proxy reward order policies as the mean gold reward does? The measure of Kim and Seo 2024.

Spearman's rank correlation over the policies that `tests/benchmarks/frontier.py` trained, for each seed: of the
white-box reward, whole, with each factor left out, and with what closes its hazards.

usage: python tests/benchmarks/proxy_reward.py [--runs runs/frontier]
"""

import argparse
from collections import defaultdict
from pathlib import Path

from lit_tr.evaluation.agreement import rank_correlations
from lit_tr.evaluation.scored import open_responses, scored
from lit_tr.evaluation.seeds import mean_of
from lit_tr.rewards import Gold, WhiteBox

REWARDS = {
    "whole": {},
    "without length": {"length": 0.0},
    "without relevance": {"relevance": 0.0},
    "without repetition": {"repetition": 0.0},
    "with copying": {"copying": 1.0},
    "with length up to 20 tokens": {"longest": 20},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/frontier"))
    runs = parser.parse_args().runs
    by_seed = files(runs)
    if not by_seed:
        raise SystemExit(f"{runs}: no run of three or more policies of a seed; run tests/benchmarks/frontier.py first")
    correlations = {seed: of_seed(those) for seed, those in by_seed.items()}
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


def of_seed(those: list[Path]) -> dict[str, float]:
    responses = open_responses(those)
    gold = scored(responses, Gold())
    found = {name: scored(responses, WhiteBox(**options)) for name, options in REWARDS.items()}
    return {name: rank_correlations(one, gold)["policies"]["rho"] for name, one in found.items()}


if __name__ == "__main__":
    main()
