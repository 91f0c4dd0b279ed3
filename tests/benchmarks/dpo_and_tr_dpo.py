"""Train the embedded model by DPO and by TR-DPO, alike but for the reference, with several seeds, and draw both.

Each run is the quickstart with another seed of pairs and training. At the start, at each quarter of the epoch and at
the end 200 responses to held-out prompts are sampled: their gold reward, and the KL divergence from the initial policy.

usage: python tests/benchmarks/dpo_and_tr_dpo.py [--seeds 1 2 3] [--beta 0.3] [--output runs/dpo_and_tr_dpo]
"""

import argparse
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure

from lit_tr import HardReferenceUpdate, PreferenceDataModule, PreferenceModule, SoftReferenceUpdate
from lit_tr.embedded import SyntheticPairs
from lit_tr.embedded.task import GoldReward
from lit_tr.evaluation import GenerationReport
from lit_tr.losses import DPO
from lit_tr.policy import PretrainedPolicy
from lit_tr.reference import CopyReference, FrozenReference

RUNS: dict[str, Any] = {
    "DPO (frozen)": (FrozenReference, None),
    "TR-DPO (soft, alpha 0.6, tau 32)": (CopyReference, lambda: SoftReferenceUpdate(alpha=0.6, every_n_steps=32)),
    "TR-DPO (hard, tau 64)": (CopyReference, lambda: HardReferenceUpdate(every_n_steps=64)),
}
STYLES = (
    {"color": "#444444", "marker": "o", "linestyle": "--"},
    {"color": "#d95f02", "marker": "s"},
    {"color": "#1b9e77", "marker": "^"},
)
FIGURES = ("gold reward", "KL to the initial policy", "response tokens")


class Sampled(Callback):
    """Keeps the figures of a policy's samples at each validation, and at the start."""

    def __init__(self) -> None:
        self.report = GenerationReport(GoldReward())
        self.points: list[dict[str, float]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._measure(trainer, pl_module)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self._measure(trainer, pl_module)

    def _measure(self, trainer: Any, pl_module: Any) -> None:
        with torch.random.fork_rng():
            _, after, _ = self.report.compare(trainer, pl_module)
        self.points.append({"step": trainer.global_step, **{name: after[name] for name in FIGURES}})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--beta", type=float, default=0.3)
    parser.add_argument("--output", type=Path, default=Path("runs/dpo_and_tr_dpo"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    kept = args.output / f"points_{args.beta}.json"
    points = json.loads(kept.read_text()) if kept.exists() else {}
    for seed in args.seeds:
        for name in RUNS:
            if f"{name}, seed {seed}" not in points:
                points[f"{name}, seed {seed}"] = run(name, seed, args.beta, args.output)
                kept.write_text(json.dumps(points, indent=1))
    for name in RUNS:
        ends = [points[f"{name}, seed {seed}"][-1] for seed in args.seeds]
        said = (
            f"{figure} {mean(e[figure] for e in ends):.2f} +- {stdev([e[figure] for e in ends]):.2f}"
            for figure in FIGURES
        )
        print(f"{name}: {', '.join(said)}")
    draw({name: [points[f"{name}, seed {seed}"] for seed in args.seeds] for name in RUNS}, args)


def run(name: str, seed: int, beta: float, root: Path) -> list[dict[str, float]]:
    """Train with one kind of reference; return the figures of its samples, from the start to the end."""
    seed_everything(seed, verbose=False)
    reference, update = RUNS[name]
    policy = PretrainedPolicy("embedded:tiny")
    module = PreferenceModule(
        policy,
        reference(),
        DPO(beta=beta),
        lambda p: torch.optim.AdamW(p, 1e-4, weight_decay=0.0),
        warm_up,
        log_initial=True,
    )
    pairs = SyntheticPairs(size=4096, seed=seed)
    data = PreferenceDataModule(
        "embedded:tiny", pairs, SyntheticPairs(size=256, held_out=True), batch_size=16, max_length=192
    )
    sampled = Sampled()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=2.0,
        val_check_interval=0.25,
        log_every_n_steps=5,
        callbacks=[sampled, *([update()] if update else [])],
        logger=CSVLogger(root, name="", version=f"{reference.__name__}_{seed}"),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(module, data)
    return sampled.points


def warm_up(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.05, total_iters=20)


def draw(runs: dict[str, list[list[dict[str, float]]]], args: argparse.Namespace) -> None:
    """Draw gold reward over KL (all seeds), and the mean KL over steps with its range over the seeds."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    frontier, drift = figure.subplots(1, 2)
    for (name, seeds), style in zip(runs.items(), STYLES, strict=True):
        for i, points in enumerate(seeds):
            kl, reward = (
                [point[figure_] for point in points] for figure_ in ("KL to the initial policy", "gold reward")
            )
            frontier.plot(kl, reward, label=name if i == 0 else None, alpha=0.8, markersize=4, linewidth=1, **style)
        steps = [point["step"] for point in seeds[0]]
        kls = [[point["KL to the initial policy"] for point in points] for points in seeds]
        drift.plot(steps, [mean(at) for at in zip(*kls, strict=True)], label=name, markersize=4, **style)
        drift.fill_between(
            steps,
            [min(at) for at in zip(*kls, strict=True)],
            [max(at) for at in zip(*kls, strict=True)],
            alpha=0.2,
            color=style["color"],
        )
    frontier.set(xlabel="KL to the initial policy (nats per response)", ylabel="gold reward (held-out prompts)")
    drift.set(xlabel="optimizer step", ylabel="KL to the initial policy (nats per response)")
    frontier.legend(loc="lower right")
    for axes in (frontier, drift):
        axes.grid(alpha=0.3)
    figure.savefig(args.output / "dpo_and_tr_dpo.png", dpi=110)
    print(f"picture: {args.output / 'dpo_and_tr_dpo.png'}")


if __name__ == "__main__":
    main()
