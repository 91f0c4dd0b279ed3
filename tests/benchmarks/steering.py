"""Gold reward against KL of quickstarts that are steered while they are sampled, and the best of N beside them.

Each seed is the quickstart with other pairs and another order. What is there is not made again.

usage: python tests/benchmarks/steering.py [--seeds 1 2 3] [--strengths 0 0.5 1 1.5 2 3] [--output runs/steering]
           [--picture docs/assets/pictures/steering.png]
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev

from lit_tr.checkpoints import complete_checkpoints
from lit_tr.commands import main as lit_tr
from lit_tr.evaluation.page import find, write_page
from lit_tr.evaluation.page.write import best_of_n, steered_policies

ROOT = Path(__file__).parents[2]
PROMPTS, SAMPLES = 200, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 0.5, 1.0, 1.5, 2.0, 3.0])
    parser.add_argument("--output", type=Path, default=Path("runs/steering"))
    parser.add_argument("--picture", type=Path, help="copy the picture there")
    args = parser.parse_args()
    common = ["--prompts", f"{PROMPTS}", "--max_new_tokens", "96", "--output", f"{args.output / 'responses'}"]
    for seed in args.seeds:
        run = trained(args.output / f"seed{seed}", seed)
        lit_tr(["generate", str(run), "--steer", f"{args.strengths}", "--name", f"seed {seed}", *common])
    lit_tr(["generate", f"{run}:initial", "--name", "initial", "--samples", f"{SAMPLES}", *common])
    files = map(str, sorted((args.output / "responses").glob("*.jsonl")))
    lit_tr(["score", *files, "--reward", "lit_tr.embedded.task.GoldReward", "--output", f"{args.output / 'scores'}"])
    found = find([args.output / "scores"])
    _, *pictures = write_page(found, args.output / "report.html")
    if args.picture:
        shutil.copy(next(path for path in pictures if "frontier_score" in path.name), args.picture)
    for points in zip(*steered_policies(found).values(), strict=True):
        print(f"| {points[0].strength:g} | {over_seeds([p.score.value for p in points])} |", end="")
        print(f" {over_seeds([p.kl.value for p in points])} |")
    for one in best_of_n(found):
        print(f"| best of {one.n} | {one.score.value:.2f} | {one.kl:.2f} at most |")


def trained(folder: Path, seed: int) -> Path:
    """Return the folder of a finished run."""
    if not any(complete_checkpoints(folder)):
        command = [sys.executable, "-m", "lit_tr", "fit", "--config", f"{ROOT / 'configs/quickstart.yaml'}"]
        command += [f"--seed_everything={seed}", f"--data.train.seed={seed}", "--trainer.callbacks=null"]
        command += [f"--trainer.default_root_dir={folder}", "--trainer.enable_progress_bar=false"]
        subprocess.run(command, check=True)
    return next(complete_checkpoints(folder)).parents[1]


def over_seeds(values: list[float]) -> str:
    """Return a mean with its standard error."""
    return f"{fmean(values):.2f} ± {stdev(values) / len(values) ** 0.5 if values[1:] else 0:.2f}"


if __name__ == "__main__":
    main()
