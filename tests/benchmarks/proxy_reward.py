"""Does the mean of a proxy reward order policies as the mean gold reward does? The measure of Kim and Seo 2024.

Spearman's rank correlation over the policies that `tests/benchmarks/frontier.py` trained, for each seed; or, with
`--checkpoints N`, over the checkpoints after every N steps of a quickstart run and its initial policy: of the white-box
reward, whole, with each factor left out, and with what closes its hazards. `lit-tr report OUTPUT` draws the mean
scores, and shows responses with the features of their scores. What is there already is not made again.

usage: python tests/benchmarks/proxy_reward.py [--runs runs/frontier] [--output runs/proxy_reward]
       python tests/benchmarks/proxy_reward.py --checkpoints 16 [--seeds 1 2 3] [--output runs/proxy_reward]
"""

import argparse
import io
import json
import os
import subprocess
import sys
from collections import defaultdict
from contextlib import redirect_stdout
from pathlib import Path

from lit_tr.commands import main as lit_tr
from lit_tr.evaluation.seeds import mean_of

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"
PROMPTS = 200
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
    parser.add_argument("--checkpoints", type=int, metavar="N", help="train, and take the policy after every N steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the runs with --checkpoints")
    args = parser.parse_args()
    if args.checkpoints:
        by_seed = {f"{seed}": checkpoints(args.output, seed, args.checkpoints) for seed in args.seeds}
    elif not (by_seed := files(args.runs)):
        raise SystemExit(
            f"{args.runs}: no run of three or more policies of a seed; run tests/benchmarks/frontier.py first"
        )
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


def checkpoints(output: Path, seed: int, every: int) -> list[Path]:
    """Return responses of the initial policy and the checkpoints of a quickstart run, which is trained."""
    run, responses = output / f"run{seed}", output / f"responses{seed}"
    each = {"dirpath": str(run), "every_n_train_steps": every, "save_top_k": -1, "filename": "{step:03d}"}
    callback = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": each}
    fit = [f"--seed_everything={seed}", f"--data.train.seed={seed}", "--trainer.limit_val_batches=0"]
    fit += [f"--trainer.default_root_dir={run}", f"--trainer.callbacks={json.dumps([callback])}"]
    if not (run / "done").exists():
        lit_tr_process("fit", f"--config={QUICKSTART}", *fit)
        (run / "done").touch()
    found = sorted(run.glob("step=*.ckpt"))
    policies = [f"{found[0]}:initial", *map(str, found)]
    lit_tr_process("generate", *policies, f"--prompts={PROMPTS}", "--max_new_tokens=96", f"--output={responses}")
    return sorted(responses.glob("*.jsonl"))


def lit_tr_process(*arguments: str) -> None:
    """Run a command of lit_tr on one core; what it prints is shown where it fails."""
    command, environment = [sys.executable, "-m", "lit_tr", *arguments], {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)


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
