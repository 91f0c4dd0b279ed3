"""A real model on real pairs, from training to the report: is it better, and what is its judge worth?

usage: python tests/benchmarks/hh_quality.py --model DIR --data FILE [--judge DIR] [--steps 60] [--prompts 50]
       [--output runs/hh_quality]

DIR is a chat model's folder, FILE holds HH pairs; the first 200 rows are held out. A LoRA policy is trained by TR-DPO
with a soft update every 20 steps; it and the initial policy answer held-out prompts; a language model on this machine,
by default the initial policy itself, compares the answers in both orders. In the same way it compares the rows' own
responses, of which people preferred one: how often it agrees with them is what its verdicts are worth.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean

from lit_tr.evaluation.responses import read
from lit_tr.evaluation.win_rate_table import figure

HELD_OUT = 200
CRITERIA = ("overall", "harmlessness")
OVERRIDES = (
    "--model.optimizer.lr=2e-4",
    "--model.lr_scheduler.total_iters=10",
    "--model.log_initial=true",
    "--update.every_n_steps=20",
    "--data.batch_size=4",
    "--data.max_tokens=null",
    "--data.max_length=512",
    "--trainer.accelerator=cpu",
    "--trainer.log_every_n_steps=5",
    "--trainer.num_sanity_val_steps=0",
    "--trainer.enable_progress_bar=false",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--judge", help="folder of the judge; by default the model itself")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--output", type=Path, default=Path("runs/hh_quality"))
    args = parser.parse_args()
    seconds = {"training": train(args)}
    run = max(args.output.glob("*/checkpoints")).parent
    policies = [str(run), f"{run}:initial", "--name=[trained, initial]", "--token_rewards"]
    counts = [f"--prompts={args.prompts}", "--max_new_tokens=64"]
    seconds["generation"] = lit_tr("generate", *policies, *counts, f"--output={run}/responses")
    write_people(run / "responses")
    for name, sides in {"judged": ("trained", "initial"), "people": ("chosen", "rejected")}.items():
        files = [f"{run}/responses/{side}.jsonl" for side in sides]
        judge = [f"--local={args.judge or args.model}", "--criteria", *CRITERIA, "--device=cpu"]
        seconds[f"judge, {' against '.join(sides)}"] = lit_tr("judge", *files, *judge, f"--output={run}/{name}")
    seconds["report"] = lit_tr("report", str(run))
    tell(run, seconds)


def train(args: argparse.Namespace) -> float:
    rows = {"train": f"train[{HELD_OUT}:]", "val": f"train[:{HELD_OUT}]"}
    data = [f"--data.{of}.{key}={value}" for of in rows for key, value in (("path", args.data), ("split", rows[of]))]
    return lit_tr(
        *("fit", "--config=base/tr_dpo", "--config=methods/lora", f"--model.policy.path={args.model}", *data),
        *(*OVERRIDES, f"--trainer.max_steps={args.steps}", f"--trainer.val_check_interval={args.steps}"),
        f"--trainer.default_root_dir={args.output}",
    )


def lit_tr(*command: str) -> float:
    """Run lit-tr; return the seconds that it took."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "lit_tr", *command], check=True)
    return time.perf_counter() - start


def write_people(folder: Path) -> None:
    """Write the rows' own responses to the prompts that were answered, the preferred and the other ones."""
    for side in ("chosen", "rejected"):
        rows = [(one.id, one.prompt, getattr(one, side)) for one in read(folder / "initial.jsonl")]
        lines = [{"id": id, "prompt": prompt, "response": response, "policy": side} for id, prompt, response in rows]
        (folder / f"{side}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def tell(run: Path, seconds: dict[str, float]) -> None:
    """Print the times, how far the policy went, and the figures of the judge."""
    took = {**seconds, "sum": sum(seconds.values())}
    print("\nseconds: " + ", ".join(f"{name} {value:.0f}" for name, value in took.items()))
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    accuracy = next(float(row["val/initial/rewards/accuracies"]) for row in rows if row.get("val/loss"))
    responses = {name: read(run / f"responses/{name}.jsonl") for name in ("trained", "initial")}
    kl = fmean(one.kl for one in responses["trained"] if one.kl is not None)
    lengths = ", ".join(f"{fmean(one.tokens or 0 for one in those):.1f} ({name})" for name, those in responses.items())
    print(f"KL from the initial policy {kl:.2f} nats per response; tokens {lengths}")
    print(f"accuracy of the implicit reward on the held-out pairs: {100 * accuracy:.1f} %")
    for name in ("judged", "people"):
        told = json.loads((run / name / "win_rates.json").read_text())
        for criterion, one in told["criteria"].items():
            rate, bias = figure(one["win_rate"], one["interval"]), one["position_bias"]
            discrete = figure(one["discrete_win_rate"], one["discrete_interval"])
            agree = figure(one["agreement"], one["agreement_interval"], ".0f")
            print(
                f"{criterion}: {told['a']['name']} over {told['b']['name']} {rate} %, discrete {discrete} %; position "
                f"bias {bias:+.2f}, orders agree {agree} %, unread {sum(one['unparsable'])}"
            )


if __name__ == "__main__":
    main()
