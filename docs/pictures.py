"""Draw the pictures of the guide on moving references, from runs of the embedded model on one CPU.

python docs/pictures.py
"""

from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from matplotlib.figure import Figure

from lit_tr import (
    AdaptiveReferenceUpdate,
    HardReferenceUpdate,
    PreferenceDataModule,
    PreferenceModule,
    SoftReferenceUpdate,
)
from lit_tr.embedded import TINY, SyntheticPairs
from lit_tr.losses import DPO
from lit_tr.reference import CopyReference, FrozenReference
from lit_tr.reference.averaging import distance

FOLDER = Path(__file__).parent / "assets" / "pictures"
STEPS = 96
RUNS = {
    "frozen": None,
    "soft: alpha 0.6, every 24 steps": SoftReferenceUpdate(alpha=0.6, every_n_steps=24),
    "hard: every 24 steps": HardReferenceUpdate(every_n_steps=24),
    "adaptive: max_kl 0.01 nats a token": AdaptiveReferenceUpdate(max_kl=0.01, every_n_steps=4),
}
STYLES = (("black", "-"), ("0.35", "--"), ("0.55", "-."), ("black", ":"))


class Recorder(Callback):
    """Measures the models every few optimizer steps; one stands before the update, one behind it.

    Args:
        points: where the measurements go.
        every: optimizer steps between them.
    """

    def __init__(self, points: list[dict], every: int) -> None:
        self.points, self.every = points, every

    @torch.no_grad()
    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        """Measure."""
        if trainer.global_step % self.every:
            return
        reference, start = module.reference.model, module.start.model
        self.points.append(
            {
                "step": trainer.global_step,
                "policy": distance(module.policy, start),
                "reference": distance(reference, start),
                "kl": module.kl_to_reference(batch).item(),
                "margin": module.reward_margin(batch),
                "updates": sum(getattr(one, "updates", 0) for one in trainer.callbacks),
            }
        )


def train(update: Callback | None) -> list[dict]:
    """Return the measurements of a run, in order; at an update there are two, before and after it."""
    seed_everything(1, verbose=False)
    points: list[dict] = []
    module = PreferenceModule(
        TINY,
        CopyReference() if update else FrozenReference(),
        DPO(beta=0.3),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0),
        lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.LinearLR(optimizer, 0.05, total_iters=20),
    )
    data = PreferenceDataModule(TINY, train=SyntheticPairs(size=16 * STEPS, seed=1), batch_size=16, max_length=192)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=2.0,
        callbacks=[Recorder(points, every=4), *([update] if update else []), Recorder(points, every=2)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return points


def updates(points: list[dict]) -> list[int]:
    """Return the steps at which the reference moved."""
    pairs = zip(points, points[1:], strict=False)
    return [after["step"] for before, after in pairs if before["updates"] != after["updates"]]


def draw_paths(runs: dict[str, list[dict]]) -> None:
    """Draw how far policy and reference are from the start, a panel for each run."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, (name, points) in zip(panels.flat, runs.items(), strict=True):
        steps = [0, *(point["step"] for point in points)]
        for model, style in (("policy", "-"), ("reference", "--")):
            values = [0.0, *(point[model] for point in points)]
            axes.plot(steps, values, color="black" if model == "policy" else "0.45", linestyle=style, label=model)
        mark_updates(axes, points)
        axes.set_title(name, loc="left", fontsize=11)
        axes.grid(alpha=0.25)
    panels[0, 0].legend(loc="upper left", frameon=False)
    figure.supxlabel("optimizer step (triangles: updates of the reference)", fontsize=10)
    figure.supylabel("Euclidean distance of the weights from the start", fontsize=10)
    save(figure, "paths.png")


def draw_figures(runs: dict[str, list[dict]]) -> None:
    """Draw divergence and reward margin against the reference, a line for each run."""
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    labels = ("KL from the reference, nats a token", "reward margin, mean of the last 5 batches measured")
    for axes, key, label in zip(panels, ("kl", "margin"), labels, strict=True):
        for (name, points), (color, style) in zip(runs.items(), STYLES, strict=True):
            steps, values = [point["step"] for point in points], [point[key] for point in points]
            if key == "margin":  # of the last batch, so smoothed
                values = smooth(values, 5)
            axes.plot([0, *steps], [0.0, *values], color=color, linestyle=style, label=name, linewidth=1.6)
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
    panels[1].set_xlabel("optimizer step")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    save(figure, "divergence.png")


def mark_updates(axes, points: list[dict]) -> None:
    """Mark updates by triangles below the curves."""
    moved = updates(points)
    axes.plot(moved, [0.0] * len(moved), "^", color="black", markersize=6, clip_on=False)


def smooth(values: list[float], width: int) -> list[float]:
    """Return the mean of each value and those before it, `width` in all."""
    return [sum(values[max(0, i - width + 1) : i + 1]) / min(i + 1, width) for i in range(len(values))]


def save(figure: Figure, name: str) -> None:
    """Write a picture."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    figure.savefig(FOLDER / name, dpi=110)


if __name__ == "__main__":
    found = {name: train(update) for name, update in RUNS.items()}
    for name, points in found.items():
        print(f"{name}: updates at {updates(points)}; at the end {points[-1]}")
    draw_paths(found)
    draw_figures(found)
