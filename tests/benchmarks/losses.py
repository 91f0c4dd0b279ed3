"""The quickstart with each loss of configs/losses, with a frozen reference and with one that moves: a table of figures.

Each run is the quickstart with a loss as its overlay has it, the rest unchanged: 256 steps of AdamW. At its end the
policy answers 200 held-out prompts. A loss without a reference stands in the first columns. The standard errors are
those over the prompts of all seeds. A run that is done is not done again, so the command can be given again.

usage: python tests/benchmarks/losses.py [--seeds 1 2 3] [--losses dpo ipo ...] [--references frozen soft]
           [--output runs/losses] [--processes 2]
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import mean

from frontier import METHODS, ROOT, STEPS, evaluations, train

FOLDER = ROOT / "configs/losses"
FIGURES = {"score": "gold reward", "kl": "KL, nats per response", "length": "tokens"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted(file.stem for file in FOLDER.glob("*.yaml"))
    parser.add_argument("--losses", nargs="+", default=names, choices=names, metavar="NAME")
    parser.add_argument("--references", nargs="+", default=["frozen", "soft"], choices=[*METHODS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--output", type=Path, default=Path("runs/losses"))
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    cells = [(name, kind) for name in args.losses for kind in (args.references if has_reference(name) else ["none"])]
    with ThreadPoolExecutor(args.processes) as pool:
        list(pool.map(lambda cell: run(args.output, cell[0], *cell[1]), product(args.seeds, cells)))
    titles = ["loss", *(f"{kind}: {name}" for kind in args.references for name in FIGURES.values())]
    print("| " + " | ".join(titles) + " |\n" + "| --- " * len(titles) + "|")
    for name in args.losses:
        kinds = args.references if has_reference(name) else ["none"]
        found = [[evaluations(folder(args.output, seed, name, kind))[-1] for seed in args.seeds] for kind in kinds]
        row = [name, *(figure(ends, one) for ends in found for one in FIGURES)]
        print("| " + " | ".join([*row, *("-" for _ in titles[len(row) :])]) + " |")


def has_reference(name: str) -> bool:
    """Return whether a loss has one, by its overlay."""
    return "reference: null" not in (FOLDER / f"{name}.yaml").read_text()


def folder(output: Path, seed: int, name: str, kind: str) -> Path:
    """Return the folder of a run."""
    return output / f"{name}_{kind}_seed{seed}"


def run(output: Path, seed: int, name: str, kind: str) -> None:
    """Train with a loss and a kind of reference."""
    options = [f"--config={FOLDER / f'{name}.yaml'}", *METHODS.get(kind, [])]
    train(folder(output, seed, name, kind), seed, options, every_n_steps=STEPS)


def figure(ends: list[dict], name: str) -> str:
    """Return the mean of a figure over seeds, with its standard error where it is known."""
    found = f"{mean(end[name] for end in ends):.2f}"
    errors = [end[f"{name}_standard_error"] ** 2 for end in ends if f"{name}_standard_error" in end]
    return f"{found} ± {sum(errors) ** 0.5 / len(ends):.2f}" if errors else found


if __name__ == "__main__":
    main()
