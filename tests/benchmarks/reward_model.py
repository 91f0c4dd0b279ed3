"""Accuracy on held-out HH pairs: of a reward model, and of the implicit reward of a policy trained by DPO.

Both begin with the same model in bfloat16 and train a LoRA adapter on the same batches, with the same optimizer, for
the same steps. The pairs are plain dialogues; the first rows are held out. Accuracies have Wilson's 95 % interval.

usage: python tests/benchmarks/reward_model.py --model DIR --data FILE [--steps 200] [--held_out 500] [--seed 1]
"""

import argparse
import tempfile
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything

from lit_tr import PreferenceDataModule, PreferenceModule
from lit_tr.data import Rows
from lit_tr.evaluation.intervals import wilson
from lit_tr.losses import DPO
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.reference import FrozenReference
from lit_tr.rewards import RewardModule


class Right(Callback):
    """Keeps for each held-out pair of a validation whether the chosen response has the higher reward."""

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self.right: list[float] = []

    def on_validation_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.right += outputs["rewards/accuracies"].tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--held_out", type=int, default=500)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--learning_rate", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    policy = PretrainedPolicy(args.model, dtype="bfloat16", lora=LoRA(r=16))
    optimizer = partial(torch.optim.AdamW, lr=args.learning_rate, weight_decay=0.0)
    modules = {
        "reward model": lambda: RewardModule(policy, optimizer=optimizer),
        "implicit reward, DPO": lambda: PreferenceModule(policy, FrozenReference(), DPO(beta=0.1), optimizer=optimizer),
    }
    for name, make in modules.items():
        low, high, mean, pairs = accuracy(args, make)
        print(f"{name:<24}{mean:.1%} of {pairs} held-out pairs, {low:.1%} to {high:.1%}", flush=True)


def accuracy(args: argparse.Namespace, make: Any) -> tuple[float, float, float, int]:
    """Train a module; return the interval of its accuracy, the accuracy, and the number of held-out pairs."""
    seed_everything(args.seed, verbose=False)
    folder = tempfile.mkdtemp()  # for the list of bad rows
    data = PreferenceDataModule(
        args.model,
        train=Rows(args.data, split=f"train[{args.held_out}:]", chat=False),
        val=Rows(args.data, split=f"train[:{args.held_out}]", chat=False),
        batch_size=args.batch_size,
        max_length=args.max_length,
        seed=args.seed,
        max_bad_rows=0.1,
    )
    right = Right()
    trainer = Trainer(
        precision="bf16-mixed",
        max_steps=args.steps,
        gradient_clip_val=1.0,
        callbacks=[right],
        logger=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = make()
    trainer.fit(module, data)
    trainer.limit_val_batches = 1.0
    trainer.validate(module, data, verbose=False)
    found = right.right
    return *wilson(sum(found), len(found)), sum(found) / len(found), len(found)


if __name__ == "__main__":
    main()
