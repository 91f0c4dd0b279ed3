"""Folders as `lit-tr fit`, `lit-tr generate` and `lit-tr judge` leave them, with figures that are easy to check."""

import csv
import json
from pathlib import Path

import yaml

LATER = {"trainer": {"default_root_dir": "elsewhere"}, "name": "other", "data": {"train": {"seed": 1}}}


def config(seed=1, beta=0.1, update="soft", lr=1e-4):
    """The part of a run's configuration that tells what it is."""
    updates = {
        "soft": {"class_path": "lit_tr.SoftReferenceUpdate", "init_args": {"alpha": 0.6, "every_n_steps": 2}},
        "hard": {"class_path": "lit_tr.HardReferenceUpdate", "init_args": {"every_n_steps": 4}},
    }
    model = {
        "loss": {"class_path": "lit_tr.losses.DPO", "init_args": {"beta": beta}},
        "reference": {"class_path": "lit_tr.reference.CopyReference"},
        "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": lr}},
    }
    return {
        "seed_everything": seed,
        "name": f"run {seed}",
        "trainer": {"default_root_dir": f"runs/{seed}"},
        "model": {"class_path": "lit_tr.PreferenceModule", "init_args": model},
        "data": {"train": {"init_args": {"seed": seed}}, "batch_size": 16},
        "update": updates.get(update),
    }


def lines(path, rows):
    """Write JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(folder, evaluations=(), metrics=True, **options):
    """Write the folder of a run of 8 steps."""
    folder = Path(folder)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.dump(config(**options)))
    if evaluations:
        lines(folder / "evaluation.jsonl", evaluations)
    if metrics:
        names = ["step", "train/loss", "train/rewards/margins", "reference/alpha", "reference/margin_jump"]
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            for step in range(8):
                update = {"reference/alpha": 0.6, "reference/margin_jump": -0.1 * step} if step % 2 else {}
                writer.writerow({"step": step, "train/loss": 0.7, "train/rewards/margins": 0.1 * step, **update})
    return folder


def evaluated(step, kl, score, **others):
    """A line of evaluation.jsonl."""
    label = "policy" if step else "initial"
    return {"step": step, "label": label, "kl": kl, "kl_standard_error": 0.1, "score": score, **others}


def response(number, text, policy, sample=0, **others):
    """A line of responses."""
    row = {"id": str(number), "prompt": f"Prompt {number}?", "sample": sample, "response": text, "policy": policy}
    return {**row, **others}


def judgement(number, a, b, preference, criterion="overall", sample=0):
    """A line of judgements.jsonl."""
    row = {"id": str(number), "sample": sample, "criterion": criterion, "prompt": f"Prompt {number}?"}
    return {**row, "response_a": a, "response_b": b, "preference": preference, "orders": [0.5, 0.5], "judge": "j"}


GOLD = {"a": 1.0, "b": 3.0, "c": 2.0}
"""Mean scores of three policies."""


def scored(folder, means, rho, gold=GOLD, reward="WhiteBox"):
    """Write what `lit-tr score --against` leaves of three policies with some mean scores."""
    folder.mkdir(parents=True)
    ours, theirs = (
        {name: {"responses": 2, "unscored": 0, "mean": mean} for name, mean in zip("abc", some, strict=True)}
        for some in (means, gold.values())
    )
    against = {"reward": "Gold <b>", "policies": theirs}
    spearman = {"responses": {"count": 6, "rho": 0.1}, "policies": {"count": 3, "rho": rho}}
    found = {"reward": reward, "policies": ours, "against": against, "spearman": spearman}
    (folder / "scores.json").write_text(json.dumps(found))


RATES = {
    "overall": {
        "prompts": 3,
        "pairs": 3,
        "win_rate": 0.5714,
        "interval": [0.491, 0.652],
        "discrete_win_rate": 0.5,
        "ties": 0.25,
        "length_controlled": 0.54321,
        "length_controlled_interval": [0.4, 0.6],
        "position_bias": -0.012,
        "position_bias_interval": [-0.1, 0.1],
        "agreement": 0.9,
        "agreement_interval": [0.8, 0.95],
        "repeatability": None,
        "unparsable": [0, 1],
    },
    "helpfulness": {"prompts": 3, "pairs": 3, "win_rate": 0.75, "interval": [0.6, 0.9], "unparsable": [0, 0]},
}


def judged(folder, judgements, criteria=RATES, a="policy", b="initial"):
    """Write what `lit-tr judge` leaves."""
    lines(folder / "judgements.jsonl", judgements)
    sides = {"a": {"name": a, "file": f"{a}.jsonl"}, "b": {"name": b, "file": f"{b}.jsonl"}}
    (folder / "win_rates.json").write_text(json.dumps({**sides, "judge": "judge <b>", "criteria": criteria}))
