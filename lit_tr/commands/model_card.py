"""The model card of an exported folder, and its way to a hub."""

import csv
import json
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from lit_tr.errors import explained
from lit_tr.evaluation.rate_search import Averaged

PAPER = """@article{gorbatovski2024learn,
  title   = {Learn Your Reference Model for Real Good Alignment},
  author  = {Gorbatovski, Alexey and Shaposhnikov, Boris and Malakhov, Alexey and Surnachev, Nikita and Aksenov,
             Yaroslav and Maksimov, Ian and Balagansky, Nikita and Gavrilov, Daniil},
  journal = {arXiv preprint arXiv:2404.09656},
  year    = {2024}
}"""
WHAT = {"policy": "A policy", "reference": "The reference", "reward": "A reward model"}
FIGURES = ("loss", "rewards/accuracies", "rewards/margins", "log_ratios", "initial/log_ratios")


def card(
    name: str,
    saved: dict[str, Any],
    base: str,
    which: str,
    is_adapter: bool,
    checkpoint: Path,
    average: Averaged | None = None,
) -> str:
    """Return the text of a model card, with the metadata that hubs read.

    Args:
        name: the model's.
        saved: the checkpoint.
        base: folder or hub id of the policy that training began with.
        which: `policy`, `reference`, or `reward` for a reward model.
        is_adapter: the folder holds an adapter, not a full model.
        checkpoint: path of the checkpoint, beside whose folder lies the run's `metrics.csv`.
        average: the rates, if the model is an average with the initial policy.
    """
    kept, run = saved["hyper_parameters"], saved.get("config") or {}
    metadata = {
        "library_name": "peft" if is_adapter else "transformers",
        "tags": ["lit_tr", "preference-alignment", "tr-dpo"],
        **({"base_model": base} if not Path(base).exists() and ":" not in base else {}),
    }
    given = {
        "policy": base,
        "loss": kept.get("loss"),
        "reference": kept.get("reference"),
        "update of the reference": run.get("update"),
        "data": (run.get("data") or {}).get("train"),
        "optimizer": kept.get("optimizer"),
        "optimizer steps": saved.get("global_step"),
        "average with the initial policy, rates of the policy": average and [*average.rates],
    }
    lines = [f"- **{option}**: {_said(value)}" for option, value in given.items() if value is not None]
    figures = [f"| {name} | {value} |" for name, value in _figures(checkpoint, saved.get("global_step", 0)).items()]
    title = "Validation of the policy, before the average" if average else "Validation"
    table = [f"\n## {title}\n", "| metric | mean |", "| --- | --- |", *figures] if figures else []
    if average and average.trials:
        table += [f"\n## The average\n\nThe best of these by {average.metric}:\n", average.markdown()]
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---",
            f"\n# {name}",
            f"\n{WHAT[which]} trained on preferences with lit_tr.\n",
            *lines,
            *table,
            f"\n## Citation\n\n```bibtex\n{PAPER}\n```\n",
        ]
    )


def push(folder: Path, repo: str) -> str:
    """Upload a folder to a hub, into a private repository if it is new; return the address of the commit.

    The token is taken from `HF_TOKEN` or from `hf auth login`, the hub from `HF_ENDPOINT`.

    Raises:
        UserError: the hub refuses.
    """
    with explained(
        f"--push {repo}: the hub refused it (is HF_TOKEN set, and may it write there?)", HfHubHTTPError, OSError
    ):
        api = HfApi()
        api.create_repo(repo, private=True, exist_ok=True)
        return str(api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Export by lit_tr"))


def _said(value: Any) -> str:
    """Return a class with its arguments, or plain data, as Markdown."""
    if isinstance(value, dict) and "class_path" in value:
        given = {name: one for name, one in (value.get("init_args") or {}).items() if one is not None}
        return (
            f"`{value['class_path'].rpartition('.')[2]}` {json.dumps(given)}" if given else f"`{value['class_path']}`"
        )
    return f"`{value}`"


def _figures(checkpoint: Path, step: int) -> dict[str, str]:
    """Return the last means of validation before a checkpoint, where its run's `metrics.csv` is there."""
    path = checkpoint.resolve().parent.parent / "metrics.csv"
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("val/loss") and int(row["step"]) < step]
    last = rows[-1] if rows else {}
    return {name: f"{float(last[f'val/{name}']):.4g}" for name in FIGURES if last.get(f"val/{name}")}
