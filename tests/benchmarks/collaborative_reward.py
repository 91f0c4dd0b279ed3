"""Do two reward models find flipped labels, and is what is trained on the other pairs better than on all?

The embedded model on pairs of the embedded task whose gold rewards differ by at least `--least_margin`. Their labels
follow the gold reward, but for a share that is flipped. `CollaborativePolicy`, by DPO, lists the pairs that it takes
for flipped: their precision and recall. A policy is trained on all pairs, and one on those that are not listed, each
for as many steps. Accuracy is that of the implicit reward on held-out pairs, whose labels are right. With
`--reward_models` it is `CollaborativeReward` and reward models in their place, which learn more slowly.

usage: python tests/benchmarks/collaborative_reward.py [--seeds 1 2 3] [--noise 0.2] [--pairs 2048] [--epochs 6]
       python tests/benchmarks/collaborative_reward.py --noise 0.4 --pairs 24576 --epochs 1
       python tests/benchmarks/collaborative_reward.py --reward_models --pairs 4096 --learning_rate 0.001
"""

import argparse
import json
import random
import warnings
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice, product
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from torch.optim.lr_scheduler import LinearLR

from lit_tr import PreferenceDataModule, PreferenceModule
from lit_tr.data import Source, Without
from lit_tr.data.rows import Objects
from lit_tr.embedded import SyntheticPairs
from lit_tr.embedded.task import GoldReward
from lit_tr.evaluation.seeds import mean_of
from lit_tr.losses import DPO
from lit_tr.reference import FrozenReference
from lit_tr.rewards import CollaborativePolicy, CollaborativeReward, RewardModule

MODEL = "embedded:tiny"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.2])
    parser.add_argument("--pairs", type=int, default=2048)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--held_out", type=int, default=1000)
    parser.add_argument("--least_margin", type=float, default=2.0)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--reward_models", action="store_true")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    cells = [*product(args.noise, args.seeds)]
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        found = dict(zip(cells, pool.map(partial(of_cell, args), cells), strict=True))
    for noise in args.noise:
        for name in found[cells[0]]:
            values = [found[noise, seed][name] for seed in args.seeds]
            mean, each = mean_of(values), " ".join(f"{value:.3f}" for value in values)
            print(f"noise {noise:<6}{name:<34}{mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]  {each}", flush=True)


def of_cell(args: argparse.Namespace, cell: tuple[float, int]) -> dict[str, float]:
    """Return precision and recall of what is found in the pairs of a seed with some noise, and accuracies."""
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    noise, seed = cell
    draw = random.Random(f"flips of {seed}")
    clean = [*islice(clear_pairs(args.least_margin, seed, False), args.pairs)]
    flips = [draw.random() < noise for _ in clean]
    pairs = Objects([swapped(row) if flip else row for row, flip in zip(clean, flips, strict=True)])
    flipped = {record.location for record, flip in zip(pairs.records(), flips, strict=True) if flip}
    with TemporaryDirectory() as folder:
        steps, listed = args.pairs // args.batch_size * args.epochs, Path(folder) / "flipped.jsonl"
        both = accuracy(args, seed, pairs, folder, noise=noise, steps=steps // 2)
        taken = {json.loads(line)["location"] for line in listed.read_text().splitlines()}
        rest, every = (accuracy(args, seed, rows, folder) for rows in (Without(pairs, str(listed)), pairs))
    found = {
        "precision of the pairs found": len(taken & flipped) / max(len(taken), 1),
        "recall": len(taken & flipped) / len(flipped),
        "accuracy, all pairs": every,
        "accuracy, the pairs left": rest,
        "accuracy, collaborative": both,
        "left less all": rest - every,
        "collaborative less all": both - every,
    }
    print(cell, found, flush=True)
    return found


def clear_pairs(least: float, seed: int, held_out: bool) -> Iterator[dict[str, str]]:
    """Yield pairs of the embedded task, the better response chosen, whose gold rewards differ by so much at least."""
    gold = GoldReward()
    for _, row in SyntheticPairs(10**9, seed, temperature=0.0, held_out=held_out).rows():
        if gold(row["prompt"], row["chosen"]) - gold(row["prompt"], row["rejected"]) >= least:
            yield row


def swapped(row: dict[str, str]) -> dict[str, str]:
    """Return a pair with the other label."""
    return {**row, "chosen": row["rejected"], "rejected": row["chosen"]}


def accuracy(args: argparse.Namespace, seed: int, rows: Source, folder: str, **collaboration: Any) -> Any:
    """Train on some rows, two models with the options of a collaboration; return the accuracy on held-out pairs."""
    seed_everything(seed, verbose=False)
    held_out = Objects([*islice(clear_pairs(args.least_margin, 0, True), args.held_out)])
    options = {"batch_size": args.batch_size, "max_length": 192, "seed": seed}
    data = PreferenceDataModule(MODEL, rows, val=held_out, **options)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    trainer = Trainer(
        accelerator="cpu",
        max_steps=args.pairs // args.batch_size * args.epochs,
        max_epochs=-1,
        gradient_clip_val=1.0,
        limit_val_batches=0,
        enable_checkpointing=False,
        default_root_dir=folder,
        **quiet,
    )
    optimizer = partial(torch.optim.AdamW, lr=args.learning_rate, weight_decay=0.0)
    how = {"optimizer": optimizer, "lr_scheduler": partial(LinearLR, start_factor=0.02, total_iters=50)}
    if args.reward_models:
        made: Any = CollaborativeReward if collaboration else RewardModule
        module = made(MODEL, **collaboration, **how)
    else:
        made = CollaborativePolicy if collaboration else PreferenceModule
        module = made(MODEL, FrozenReference(), DPO(beta=0.3), **collaboration, **how)
    trainer.fit(module, data)
    trainer.limit_val_batches = 1.0
    [found] = trainer.validate(module, data, verbose=False)
    return found["val/rewards/accuracies"]


if __name__ == "__main__":
    main()
