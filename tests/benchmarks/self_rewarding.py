"""A round of self-rewarding on a small chat model, end to end, with the model as its own judge, and what that is worth.

Of a file of HH pairs those with one turn of the human are taken: the first are held out, and the prompts are those
behind them. The policy answers, rates its own answers, and a LoRA adapter is trained by DPO on the best against the
worst. The judge also rates the rows' own responses, of which people preferred one: how often it agrees with them is
printed beside ties and what it left unread.

A model as small as SmolLM2-135M does not keep to the form of an answer: `--judgements` first counts how many
judgements by the paper's prompt can be read. The round itself takes the mean over digits as first token. With
`--self_reference` the judge answers each prompt itself and compares in both orders, as configs/iterate/self_reference.

usage: python tests/benchmarks/self_rewarding.py --model DIR --data FILE [--prompts 32] [--held_out 16] [--rounds 1]
       [--judgements 8] [--self_reference] [--output runs/self_rewarding]
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import yaml

from lit_tr.data import Rows
from lit_tr.evaluation.intervals import wilson
from lit_tr.evaluation.judges import JudgeReward
from lit_tr.evaluation.scored import preferences


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--held_out", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--judgements", type=int, default=8)
    parser.add_argument("--max_new_tokens", type=int, default=48)
    parser.add_argument("--self_reference", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("runs/self_rewarding"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "pairs.jsonl").write_text("".join(single_turns(args.data)))
    args.data = str(args.output / "pairs.jsonl")
    read_by_the_papers_prompt(args)
    began = time.monotonic()
    file = args.output / "rounds.yaml"
    file.write_text(yaml.safe_dump(configuration(args)))
    subprocess.run([sys.executable, "-m", "lit_tr", "iterate", "--config", str(file)], check=True)
    print(f"{args.rounds} rounds of {args.prompts} prompts: {time.monotonic() - began:.0f} s")
    for folder in sorted((args.output / "rounds").glob("round_*")):
        tell(folder)


def single_turns(data: str) -> Iterator[str]:
    """Yield a line for each pair whose prompt is one turn of the human."""
    sides = preferences(Rows(data), 0.5).by_policy
    for chosen, rejected in zip(sides["chosen"], sides["rejected"], strict=True):
        if str(chosen.prompt).count("Human:") == 1:
            row = {"prompt": chosen.prompt, "chosen": chosen.response, "rejected": rejected.response}
            yield json.dumps(row, ensure_ascii=False) + "\n"


def read_by_the_papers_prompt(args: argparse.Namespace) -> None:
    """Print how many judgements of some responses can be read."""
    if not args.judgements:
        return
    began = time.monotonic()
    cache = str(args.output / "additive.sqlite3")
    judge = JudgeReward(path=args.model, max_tokens=160, judgements=1, dtype="float32", cache=cache)
    responses = preferences(Rows(args.data, split=f"train[:{args.judgements}]"), 0.5).by_policy["chosen"]
    unread = sum(one["unread"] for one in judge.explain([one.candidate for one in responses]))
    print(
        f"additive prompt: {unread:.0f} of {len(responses)} judgements cannot be read; {time.monotonic() - began:.0f} s"
    )


def configuration(args: argparse.Namespace) -> dict:
    """Return the options of `lit-tr iterate`: those of configs/self_rewarding.yaml, but for what is small here."""
    last = args.held_out + args.rounds * args.prompts
    rows = {"prompts": f"train[{args.held_out}:{last}]", "held_out": f"train[:{args.held_out}]"}
    judge = {"path": "{policy}", "dtype": "float32", "cache": "{output}/answers.sqlite3"}
    if args.self_reference:
        name, judge = "SelfReference", judge | {"answer_tokens": args.max_new_tokens}
    else:
        rating = {"prompt": "score", "lowest": 1, "highest": 9, "max_tokens": 1, "judgements": 1}
        name, judge = "JudgeReward", judge | rating
    return {
        "output": str(args.output / "rounds"),
        "rounds": args.rounds,
        "prompts_per_round": args.prompts,
        "held_out_prompts": args.held_out,
        **{name: {"class_path": "lit_tr.data.Rows", "init_args": {"path": args.data, "split": split}}
           for name, split in rows.items()},
        "sampling": {"samples": 4, "temperature": 0.7, "top_p": 0.9, "max_new_tokens": args.max_new_tokens, "seed": 1},
        "reward": {"class_path": f"lit_tr.evaluation.judges.{name}", "init_args": judge},
        "stop": {"length": 2.0},
        "fit": {
            "seed_everything": 1,
            "trainer": {"max_epochs": 1, "log_every_n_steps": 1, "limit_val_batches": 0},
            "model": {
                "policy": {"path": args.model, "lora": {"r": 16, "alpha": 32}},
                "reference": "lit_tr.reference.FrozenReference",
                "loss": {"class_path": "lit_tr.losses.DPO", "init_args": {"beta": 0.1}},
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 2e-4, "weight_decay": 0.0}},
            },
            "data": {"batch_size": 4, "max_length": 1024},
        },
    }  # fmt: skip


def tell(folder: Path) -> None:
    """Print the figures of a round, and the share of held-out pairs that the judge ranks as people do, without ties."""
    found = json.loads((folder / "round.json").read_text())
    names = ("pairs", "ties", "too_few", "unscored", "candidates", "longer_chosen", "length", "kl", "reward")
    shown = {name: found[name] for name in (*names, "reward_win_rate", "agreement") if name in found}
    print(f"{folder.name}: " + ", ".join(f"{name} {value:.3g}" for name, value in shown.items()))
    if not (folder / "held_out.pairs.jsonl").exists():  # the judge is that of the round before
        return
    lines = [json.loads(line) for line in (folder / "held_out.pairs.jsonl").read_text().split("\n") if line]
    scores = {(one["id"], one["sample"]): one.get("score") for one in lines}
    both = [(scores[id, 0], scores[id, 1]) for id, sample in scores if sample == 0]
    known = [(a, b) for a, b in both if a is not None and b is not None]
    right, ties = sum(a > b for a, b in known), sum(a == b for a, b in known)
    low, high = wilson(right, len(known) - ties)
    print(
        f"  judge and people: {right} of {len(known) - ties} pairs, {low:.0%} to {high:.0%}; {ties} ties, "
        f"{len(both) - len(known)} unread"
    )


if __name__ == "__main__":
    main()
