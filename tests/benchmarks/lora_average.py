"""Soft updates of a LoRA reference against dense averages in float64: by weights and by factors.

usage: python tests/benchmarks/lora_average.py --model DIR --data FILE [--steps 50] [--every 10]

First on random factors, then on those of a run of TR-DPO (LoRA r=16 on all linear layers, alpha 0.6). Errors are
relative, of the Frobenius norm over all layers, after the last update.
"""

import argparse
from typing import Any

import torch
from lightning.pytorch import Trainer

from lit_tr import PreferenceDataModule, PreferenceModule, SoftReferenceUpdate
from lit_tr.data import Rows
from lit_tr.losses import DPO
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.policy.adapters import lora_factors
from lit_tr.reference import AdapterReference
from lit_tr.reference.lowrank import LowRank, average

ALPHA = 0.6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--every", type=int, default=10)
    args = parser.parse_args()
    print("| factors | updates | weights, rank 2r | weights, rank r | factor by factor |")
    print("| --- | --- | --- | --- | --- |")
    on_random_factors()
    on_a_run(args)


class Averages:
    """One reference by dense averages in float64, and three by low ranks."""

    def __init__(self, start: dict[str, LowRank]) -> None:
        self.exact = {name: dense(one) for name, one in start.items()}
        self.factors = dict(start)
        self.ranks = {growth: {name: grown(one, growth) for name, one in start.items()} for growth in (1, 2)}
        self.updates = 0

    def update(self, policy: dict[str, LowRank]) -> None:
        for name, one in policy.items():
            self.exact[name].mul_(1 - ALPHA).add_(ALPHA * dense(one))
            old = self.factors[name]
            self.factors[name] = LowRank(old.a.lerp(one.a, ALPHA), old.b.lerp(one.b, ALPHA), one.scaling)
            for kept in self.ranks.values():
                a, b, _, _ = average(one, kept[name], ALPHA)
                kept[name] = LowRank(a, b, one.scaling)
        self.updates += 1

    def line(self, title: str) -> str:
        errors = [self.error(kept) for kept in (self.ranks[2], self.ranks[1], self.factors)]
        return f"| {title} | {self.updates} | {' | '.join(f'{error:.2g}' for error in errors)} |"

    def error(self, kept: dict[str, LowRank]) -> float:
        lost = sum((dense(kept[name]) - exact).square().sum().item() for name, exact in self.exact.items())
        return (lost / sum(exact.square().sum().item() for exact in self.exact.values())) ** 0.5


def dense(one: LowRank) -> torch.Tensor:
    return one.scaling * one.b.double() @ one.a.double()


def grown(one: LowRank, growth: int) -> LowRank:
    more = (growth - 1) * one.a.shape[0]
    pad = torch.nn.functional.pad
    return LowRank(pad(one.a, (0, 0, 0, more)), pad(one.b, (0, more)), one.scaling)


def on_random_factors(rank: int = 16, size: int = 576, layers: int = 8) -> None:
    torch.manual_seed(0)

    def factors() -> dict[str, LowRank]:
        return {str(i): LowRank(torch.randn(rank, size), torch.randn(size, rank), 2.0) for i in range(layers)}

    for count in (1, 5):
        averages = Averages(factors())
        for _ in range(count):
            averages.update(factors())
        print(averages.line(f"random, {size} x {size}, r = {rank}"), flush=True)


def on_a_run(args: argparse.Namespace) -> None:
    class Watched(SoftReferenceUpdate):
        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            super().on_train_start(trainer, pl_module)
            self.averages = Averages(copied(pl_module.policy))

        def alpha_at(self, step: int) -> float:
            self.averages.update(copied(module.policy))
            return super().alpha_at(step)

    update = Watched(alpha=ALPHA, every_n_steps=args.every)
    module = PreferenceModule(
        PretrainedPolicy(args.model, dtype="bfloat16", lora=LoRA(r=16)),
        AdapterReference(),
        DPO(beta=0.05),
        optimizer=lambda params: torch.optim.AdamW(params, lr=5e-5, weight_decay=0.0),
        log_initial=False,
    )
    data = PreferenceDataModule(args.model, Rows(args.data, chat=False), batch_size=4, max_length=512, shuffle=False)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    torch.manual_seed(1)
    Trainer(accelerator="cpu", max_steps=args.steps, gradient_clip_val=2.0, callbacks=update, **quiet).fit(module, data)
    print(update.averages.line(f"of {args.steps} steps, every {args.every}"))
    kept = copied(module.policy, "reference")
    print(f"\nThe module's own reference is off by {update.averages.error(kept):.2g}.")


def copied(policy: torch.nn.Module, adapter: str = "default") -> dict[str, LowRank]:
    factors = ((name, one) for name, (one,) in lora_factors(policy, adapter).items())
    return {name: LowRank(one.a.float().clone(), one.b.float().clone(), one.scaling) for name, one in factors}


if __name__ == "__main__":
    main()
