"""DPO beside TR-DPO on the embedded task, alike but for the reference, with several seeds: figures and a picture.

The runs are those of `frontier.py` at one beta; what is done there is not done again.

usage: python tests/benchmarks/dpo_and_tr_dpo.py [--seeds 1 2 3] [--beta 0.3] [--output runs/frontier] [--processes 2]
           [--picture docs/assets/pictures/dpo_and_tr_dpo.png]
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import mean, stdev

from frontier import METHODS, cell, evaluations, run
from matplotlib.figure import Figure

from lit_tr.evaluation.page.pictures import KIND_STYLES

NAMES = {"frozen": "DPO (frozen)", "soft": "TR-DPO (soft, alpha 0.6, tau 32)", "hard": "TR-DPO (hard, tau 64)"}
STYLES = {**KIND_STYLES, "frozen": {**KIND_STYLES["frozen"], "linestyle": "--"}}
FIGURES = {"score": "gold reward", "kl": "KL to the initial policy", "length": "response tokens"}
PER_RESPONSE = "KL to the initial policy (nats per response)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--beta", type=float, default=0.3)
    parser.add_argument("--output", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--picture", type=Path, default=Path("dpo_and_tr_dpo.png"))
    args = parser.parse_args()
    with ThreadPoolExecutor(args.processes) as pool:
        cells = product(args.seeds, [args.beta], METHODS)
        list(pool.map(lambda one: run(args.output, *one), cells))
    runs = {
        method: [evaluations(args.output / cell(seed, args.beta, method)) for seed in args.seeds] for method in METHODS
    }
    for method, seeds in runs.items():
        ends = [[points[-1][figure] for points in seeds] for figure in FIGURES]
        said = (f"{name} {mean(e):.2f} +- {stdev(e):.2f}" for name, e in zip(FIGURES.values(), ends, strict=True))
        print(f"{NAMES[method]}: {', '.join(said)}")
    draw(runs, args.picture)
    print(f"picture: {args.picture}")


def draw(runs: dict[str, list[list[dict]]], path: Path) -> None:
    """Draw gold reward over KL (all seeds), and the mean KL over steps with its range over the seeds."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    frontier, drift = figure.subplots(1, 2)
    for method, seeds in runs.items():
        name, style = NAMES[method], STYLES[method]
        for i, points in enumerate(seeds):
            kl, reward = ([point[of] for point in points] for of in ("kl", "score"))
            frontier.plot(kl, reward, label=name if i == 0 else None, alpha=0.8, markersize=4, linewidth=1, **style)
        steps = [point["step"] for point in seeds[0]]
        kls = [*zip(*([point["kl"] for point in points] for points in seeds), strict=True)]
        drift.plot(steps, [mean(at) for at in kls], label=name, markersize=4, **style)
        drift.fill_between(steps, [min(at) for at in kls], [max(at) for at in kls], alpha=0.2, color=style["color"])
    frontier.set(xlabel=PER_RESPONSE, ylabel="gold reward (held-out prompts)")
    drift.set(xlabel="optimizer step", ylabel=PER_RESPONSE)
    frontier.legend(loc="lower right")
    for axes in (frontier, drift):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
