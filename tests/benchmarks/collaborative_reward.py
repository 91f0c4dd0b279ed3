"""Do two reward models find flipped labels, and is what is trained on the other pairs better than on all?

The embedded model on pairs of the embedded task whose labels follow the gold reward, but for a share that is flipped.
`CollaborativeReward` lists the pairs that it takes for flipped: their precision and recall. A reward model is trained
on all pairs, one on those that are not listed, and one on those that truly are not flipped; each for as many steps.
Their accuracy is that on held-out pairs, whose labels are right.

usage: python tests/benchmarks/collaborative_reward.py [--seeds 1 2 3] [--noise 0.2 0.4] [--pairs 4096] [--epochs 4]
"""

import argparse
import json
import warnings
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from lit_tr import PreferenceDataModule
from lit_tr.data import Without
from lit_tr.embedded import SyntheticPairs
from lit_tr.evaluation.seeds import mean_of
from lit_tr.rewards import CollaborativeReward, RewardModule

MODEL = "embedded:tiny"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--noise", type=float, nargs="+", default=[0.2, 0.4])
    parser.add_argument("--pairs", type=int, default=4096)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--held_out", type=int, default=2000)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    for noise in args.noise:
        found = [of_seed(args, seed, noise) for seed in args.seeds]
        for name in found[0]:
            mean = mean_of([one[name] for one in found])
            values = " ".join(f"{one[name]:.3f}" for one in found)
            print(f"noise {noise:<6}{name:<34}{mean.value:.3f} [{mean.low:.3f}, {mean.high:.3f}]  {values}", flush=True)


def of_seed(args: argparse.Namespace, seed: int, noise: float) -> dict[str, float]:
    """Return precision and recall of what is found in the pairs of a seed, and accuracies."""
    pairs = partial(SyntheticPairs, args.pairs, seed, temperature=0.0)
    noisy, clean = pairs(flipped=noise), pairs()
    flipped = {place for (place, row), (_, true) in zip(noisy.rows(), clean.rows(), strict=True) if row != true}
    with TemporaryDirectory() as folder:
        steps = args.pairs // args.batch_size * args.epochs
        both = accuracy(args, seed, noisy, folder, partial(CollaborativeReward, MODEL, noise, steps // 2))
        listed, truth = Path(folder) / "flipped.jsonl", Path(folder) / "truth.jsonl"
        taken = {json.loads(line)["location"] for line in listed.read_text().splitlines()}
        truth.write_text("".join(json.dumps({"location": place}) + "\n" for place in sorted(flipped)))
        one = partial(RewardModule, MODEL)
        all_pairs, rest, right = (
            accuracy(args, seed, rows, folder, one)
            for rows in (noisy, Without(noisy, str(listed)), Without(noisy, str(truth)))
        )
    return {
        "precision of the pairs found": len(taken & flipped) / max(len(taken), 1),
        "recall": len(taken & flipped) / len(flipped),
        "accuracy, all pairs": all_pairs,
        "accuracy, collaborative": both,
        "accuracy, the pairs left": rest,
        "accuracy, all that is right": right,
        "left less all": rest - all_pairs,
        "collaborative less all": both - all_pairs,
    }


def accuracy(args: argparse.Namespace, seed: int, rows: Any, folder: str, make: Any) -> float:
    """Train a reward model on some rows; return its accuracy on held-out pairs."""
    seed_everything(seed, verbose=False)
    held_out = SyntheticPairs(args.held_out, temperature=0.0, held_out=True)
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
    module = make(optimizer=partial(torch.optim.AdamW, lr=args.learning_rate, weight_decay=0.0))
    trainer.fit(module, data)
    trainer.limit_val_batches = 1.0
    [found] = trainer.validate(module, data, verbose=False)
    return found["val/rewards/accuracies"]


if __name__ == "__main__":
    main()
