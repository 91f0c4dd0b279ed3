"""Draw the pictures of the guide on moving references, from an exact simulation that takes a second.

python docs/pictures.py

The policy is a softmax over 24 responses to one prompt, so its divergence is exact. A hidden reward labels all pairs of
them by Bradley-Terry; DPO is trained on the expectation over these labels, by lit_tr's own loss, and the reference
moves by its own update.
"""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lit_tr.evaluation.page.pictures import KIND_STYLES
from lit_tr.losses import DPO, Scores
from lit_tr.reference.averaging import distance, soft_update

FOLDER = Path(__file__).parent / "assets" / "pictures"
BETA, RESPONSES, STEPS, EVERY, MAX_KL = 0.5, 24, 95, 24, 0.1
FROZEN, SOFT, HARD, ADAPTIVE = KINDS = (
    "frozen",
    f"soft: alpha 0.6, every {EVERY} steps",
    f"hard: every {EVERY} steps",
    f"adaptive: max_kl {MAX_KL}, every 4 steps",
)
LINES = ("-", "--", "-.", ":")


class Policy(nn.Module):
    """A distribution over the responses to one prompt."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(RESPONSES, dtype=torch.float64))

    def forward(self) -> Tensor:
        """Return the log-probs of the responses, `(responses,)`."""
        return self.logits.log_softmax(dim=0)


def rewards() -> Tensor:
    """Return the hidden reward of each response, `(responses,)`."""
    return torch.randn(RESPONSES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def alpha_of(kind: str, step: int, kl: float) -> float:
    """Return the weight of the policy in an update after a step; 0 for none."""
    if kind == ADAPTIVE:
        return float(step % 4 == 0 and kl > MAX_KL)
    return {FROZEN: 0.0, SOFT: 0.6, HARD: 1.0}[kind] * (step % EVERY == 0)


def simulate(kind: str) -> list[dict[str, float]]:
    """Return measurements in order: at the start, after each step, and once more after each update."""
    policy, reference, start, reward = Policy(), Policy(), Policy(), rewards()
    one, other = torch.combinations(torch.arange(RESPONSES)).T
    confidence, tokens = torch.sigmoid(reward[one] - reward[other]), torch.ones(len(one))
    optimizer, loss = torch.optim.SGD(policy.parameters(), lr=20.0), DPO(beta=BETA)

    def measured(step: int, updated: bool = False) -> dict[str, float]:
        with torch.no_grad():
            ours, theirs = policy(), reference()
            ratios = ours - theirs
            return {
                "step": step,
                "updated": updated,
                "policy": distance(policy, start).item(),
                "reference": distance(reference, start).item(),
                "kl": (ours.exp() * ratios).sum().item(),
                "margin": (BETA * (ratios[one] - ratios[other]) * (2 * confidence - 1)).mean().item(),
                "reward": (ours.exp() * reward).sum().item(),
            }

    points = [measured(0)]
    for step in range(1, STEPS + 1):
        ours, theirs = policy(), reference().detach()
        labels = {"confidence": confidence}
        chosen, rejected = (Scores(ours[i], tokens, theirs[i], labels) for i in (one, other))
        optimizer.zero_grad()
        loss(chosen, rejected).mean().backward()
        optimizer.step()
        points.append(measured(step))
        if alpha := alpha_of(kind, step, points[-1]["kl"]):
            soft_update(policy, reference, alpha)
            points.append(measured(step, updated=True))
    return points


def draw_paths(runs: dict[str, list[dict[str, float]]]) -> Figure:
    """Draw how far policy and reference are from the start, a panel for each run."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    for axes, (kind, points) in zip(panels.flat, runs.items(), strict=True):
        steps = [point["step"] for point in points]
        for model, color, style in (("policy", "black", "-"), ("reference", "0.45", "--")):
            axes.plot(steps, [point[model] for point in points], color=color, linestyle=style, label=model)
        moved = [point["step"] for point in points if point["updated"]]
        axes.plot(moved, [-2.0] * len(moved), "^", color="black", markersize=6, label="update")
        axes.set_title(kind, loc="left", fontsize=11)
        axes.grid(alpha=0.25)
    for axes in panels[1]:
        axes.set_xlabel("optimizer step")
    for axes in panels[:, 0]:
        axes.set_ylabel("distance from the start\n(Euclidean, of the weights)")
    figure.legend(*panels[0, 1].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    return figure


def draw_figures(runs: dict[str, list[dict[str, float]]]) -> Figure:
    """Draw divergence, reward margin and true reward, a line for each run."""
    labels = {
        "kl": "KL from the reference\n(nats per response)",
        "margin": "mean reward margin\n(nats times beta)",
        "reward": "mean hidden reward\nof the policy",
    }
    figure = Figure(figsize=(10, 8), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    for axes, (key, label) in zip(panels, labels.items(), strict=True):
        for (kind, points), line in zip(runs.items(), LINES, strict=True):
            color = KIND_STYLES[kind.partition(":")[0]]["color"]
            steps = [point["step"] for point in points]
            axes.plot(steps, [point[key] for point in points], color=color, linestyle=line, label=kind, linewidth=1.6)
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
    panels[-1].set_xlabel("optimizer step")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=2, frameon=False)
    return figure


if __name__ == "__main__":
    found = {kind: simulate(kind) for kind in KINDS}
    FOLDER.mkdir(parents=True, exist_ok=True)
    draw_paths(found).savefig(FOLDER / "paths.png", dpi=110)
    draw_figures(found).savefig(FOLDER / "divergence.png", dpi=110)
