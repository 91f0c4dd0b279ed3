"""Gold reward against KL on the embedded task: {frozen, soft, hard} references x betas x seeds, and the report.

Each cell is the quickstart with another reference, beta and seed (of pairs and of training), evaluated every 64 steps
by the gold reward on 200 held-out prompts. A cell that is done is not done again, so the command can be given again.

usage: python tests/benchmarks/frontier.py [--betas 0.03 0.1 0.3 1] [--seeds 1 2 3] [--methods frozen soft hard]
           [--output runs/frontier] [--processes 2] [--picture docs/assets/pictures/frontier.png]
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from lit_tr import PreferenceDataModule
from lit_tr.embedded import TINY, SyntheticPairs
from lit_tr.embedded.task import GoldReward
from lit_tr.evaluation import generate
from lit_tr.evaluation.page import find, write_page
from lit_tr.policy import PretrainedPolicy

ROOT = Path(__file__).parents[2]
METHODS = {
    "frozen": ["--model.reference=FrozenReference", "--update=null"],
    "soft": [],
    "hard": ["--update=HardReferenceUpdate", "--update.every_n_steps=64"],
}
STEPS, EVERY, PROMPTS, SAMPLES = 256, 64, 200, 16
MONITOR: dict[str, Any] = {
    "class_path": "lit_tr.evaluation.PolicyMonitor",
    "init_args": {
        "judge": {"class_path": "lit_tr.embedded.task.GoldReward"},
        "prompts": PROMPTS,
        "pairs": 64,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.03, 0.1, 0.3, 1.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    parser.add_argument("--output", type=Path, default=Path("runs/frontier"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--picture", type=Path, help="copy the picture of the frontier there")
    args = parser.parse_args()
    start, cells = time.perf_counter(), [*product(args.seeds, args.betas, args.methods)]
    with ThreadPoolExecutor(args.processes) as pool:
        list(pool.map(lambda one: run(args.output, *one), cells))
    best_of_n(args.output / "initial.jsonl")
    page, *pictures = write_page(find([args.output]), args.output / "report.html")
    if args.picture:
        shutil.copy(next(path for path in pictures if "frontier_score" in path.name), args.picture)
    print(f"{len(cells)} cells in {time.perf_counter() - start:.0f} s; report: {page}")


def run(output: Path, seed: int, beta: float, method: str) -> None:
    """Train a cell, unless it is done."""
    train(output / cell(seed, beta, method), seed, [*METHODS[method], f"--model.loss.beta={beta}"])


def cell(seed: int, beta: float, method: str) -> str:
    """Return the name of a cell."""
    return f"{method}_beta{beta:g}_seed{seed}"


def train(folder: Path, seed: int, options: list[str], every_n_steps: int = EVERY) -> None:
    """Train the quickstart with some options, unless it is done; what an earlier call left unfinished is removed."""
    start = time.perf_counter()
    if done(folder):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    monitor = {**MONITOR, "init_args": {**MONITOR["init_args"], "every_n_steps": every_n_steps}}
    logger = {"save_dir": str(folder.parent), "name": "", "version": folder.name}
    logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": logger}
    command = [sys.executable, "-m", "lit_tr", "fit", f"--config={ROOT / 'configs/quickstart.yaml'}", *options]
    command += [
        f"--seed_everything={seed}",
        f"--data.train.seed={seed}",
        f"--trainer.callbacks+={json.dumps(monitor)}",
        "--model.log_initial=true",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_checkpointing=false",
        "--trainer.limit_val_batches=2",
        f"--trainer.logger={json.dumps(logger)}",
    ]
    with folder.with_name(f"{folder.name}.log").open("w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, stdout=log, stderr=log, env=environment, check=True)
    print(f"{folder.name}: {time.perf_counter() - start:.0f} s", flush=True)


def done(folder: Path) -> bool:
    """Return whether a cell has been evaluated at its end."""
    return (folder / "generations.jsonl").exists() and any(line["step"] == STEPS for line in evaluations(folder))


def evaluations(folder: Path) -> list[dict]:
    """Return what the monitor has written of a run."""
    file = folder / "evaluation.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def best_of_n(path: Path) -> None:
    """Write scored samples of the initial policy to the same prompts, from which the best of N is estimated."""
    if path.exists():
        return
    held_out = SyntheticPairs(size=256, held_out=True)
    data = PreferenceDataModule(TINY, SyntheticPairs(size=16), held_out, max_length=192)
    data.prepare_data()
    data.setup("fit")
    model, gold, lines = PretrainedPolicy(TINY).load(), GoldReward(), []
    prompts = [example.prompt for example in data.examples["val"][:PROMPTS]]
    for sample in range(SAMPLES):
        for number, one in enumerate(generate(model, data.tokenizer, prompts, 96, seed=1000 + sample)):
            score = gold(one.prompt_text, one.text)
            row = {"id": str(number), "prompt": one.prompt_text, "sample": sample, "response": one.text}
            lines.append(json.dumps({**row, "policy": "initial", "tokens": len(one.response), "score": score}))
    path.write_text("".join(f"{line}\n" for line in lines))


if __name__ == "__main__":
    main()
