"""Speed, memory and resume of streams, beside datasets + tokenizer + padding collator.

usage: python tests/benchmarks/data_pipeline.py --model DIR --data FILE [--rows 1000000] [--repeats 3]

Three tables: rows and tokens a second with 0, 1 and 2 workers, ours and the plain pipeline in turn, on the rows of FILE
(Anthropic HH) in two shards, and the share of a training step that a batch takes; resident memory while short rows
stream by; seconds to the first batch after a resume, in a process of its own.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import datasets
import psutil
import pyarrow
import torch
from pyarrow import parquet
from torch.utils.data import DataLoader
from transformers import AutoTokenizer

from lit_tr import PreferenceDataModule
from lit_tr.data import Rows
from lit_tr.data.batches import PairBatch
from lit_tr.data.formats import implicit_prompt
from lit_tr.policy import PretrainedPolicy, response_log_probs

PAIRS = 4
LENGTH = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--resume", nargs=2, metavar=("FILE", "STATE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.resume:
        print(json.dumps(first_batch(args.model, *args.resume)))
        return
    with tempfile.TemporaryDirectory() as folder:
        speed(args, Path(folder))
        memory_and_resume(args, Path(folder))


def speed(args: argparse.Namespace, folder: Path) -> None:
    rows = [row for _, row in Rows(args.data).rows() if is_good(row)]
    half = len(rows) // 2
    for shard, part in enumerate((rows[:half], rows[half:])):
        (folder / f"{shard}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    print(f"{len(rows)} rows in two shards, {PAIRS} pairs a batch, within {LENGTH} tokens, {args.repeats} repeats\n")
    print("| workers | ours: rows, tokens a second | plain: rows, tokens a second | time, ours / plain |")
    print("| --- | --- | --- | --- |")
    for workers in (0, 1, 2):
        found: dict[str, list[tuple[float, int]]] = {"ours": [], "plain": []}
        for _ in range(args.repeats):
            found["ours"].append(timed(ours(args.model, str(folder / "*.jsonl"), workers)))
            found["plain"].append(timed(plain(args.model, sorted(map(str, folder.glob("*.jsonl"))), workers)))
        seconds = {name: median(second for second, _ in runs) for name, runs in found.items()}
        cells = [f"{len(rows) / seconds[name]:,.0f}, {runs[0][1] / seconds[name]:,.0f}" for name, runs in found.items()]
        print(f"| {workers} | {' | '.join(cells)} | {seconds['ours'] / seconds['plain']:.2f} |", flush=True)
        if workers == 0:
            a_batch = seconds["ours"] / len(rows) * PAIRS
    step = a_step(args.model, next(iter(ours(args.model, str(folder / "*.jsonl"), 0))))
    print(f"\nA batch takes {a_batch * 1000:.1f} ms without workers, {a_batch / step:.2%} of a step of {step:.2f} s.\n")


def ours(model: str, pattern: str, workers: int, **options: Any) -> Any:
    options = {"batch_size": PAIRS, "max_length": LENGTH, "buffer": 512, **options}
    data = PreferenceDataModule(model, Rows(pattern), num_workers=workers, **options)
    data.setup("fit")
    return data.train_dataloader()


def plain(model: str, files: list[str], workers: int) -> Any:
    """The same rows by the libraries: prompt and both texts tokenized row by row, shuffled, padded."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    pad = tokenizer.pad_token_id or 0

    def encode(row: dict[str, str]) -> dict[str, list[int]]:
        example = implicit_prompt(row)
        prompt, chosen, rejected = (
            tokenizer(text)["input_ids"]
            for text in (example.prompt, example.prompt + example.chosen, example.prompt + example.rejected)
        )
        return {"prompt": prompt[:LENGTH], "chosen": chosen[:LENGTH], "rejected": rejected[:LENGTH]}

    def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        texts = [row[name] for name in ("chosen", "rejected") for row in rows]
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], True, pad)
        labels = ids.clone()
        for i, row in enumerate(rows + rows):
            labels[i, : len(row["prompt"])] = -100
        return {"input_ids": ids, "attention_mask": ids != pad, "labels": labels}

    rows = datasets.load_dataset("json", data_files=files, split="train", streaming=True)
    mapped = rows.map(encode, remove_columns=["chosen", "rejected"]).shuffle(seed=0, buffer_size=512)
    return DataLoader(mapped, batch_size=PAIRS, collate_fn=collate, num_workers=workers)


def timed(loader: Any) -> tuple[float, int]:
    start, tokens = time.perf_counter(), 0
    for batch in loader:
        tokens += batch.input_ids.numel() if isinstance(batch, PairBatch) else int(batch["attention_mask"].sum())
    return time.perf_counter() - start, tokens


def is_good(row: Any) -> bool:
    try:
        return implicit_prompt(row) is not None
    except ValueError:
        return False


def a_step(model: str, batch: PairBatch) -> float:
    """Seconds of a forward and backward pass of the policy and a forward pass as reference, in bfloat16."""
    policy = PretrainedPolicy(model, dtype="bfloat16").load()
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        with torch.no_grad():
            response_log_probs(policy, batch)
        response_log_probs(policy, batch).sum().backward()
        taken.append(time.perf_counter() - start)
    return median(taken[1:])


def memory_and_resume(args: argparse.Namespace, folder: Path) -> None:
    marks = [10_000, 100_000, args.rows * 9 // 10, args.rows]
    states = {}
    print(f"{args.rows:,} short rows; resident memory of the process after so many")
    print(f"| file | {' | '.join(f'{mark:,}' for mark in marks)} | the last less the first |")
    print("| --- | " + "--- | " * (len(marks) + 1))
    for name in ("rows.parquet", "rows.jsonl"):
        write_short_rows(folder / name, args.rows)
        loader, read, found = ours(args.model, str(folder / name), 0, batch_size=50), 0, []
        for batch in loader:
            loader.trained(batch)
            read += len(batch)
            if read in marks:
                found.append(psutil.Process().memory_info().rss / 1e6)
                states[name, read] = loader.state_dict()
        shown = " | ".join(f"{mb:.0f} MB" for mb in found)
        print(f"| {name.rpartition('.')[2]} | {shown} | {found[-1] - found[0]:.0f} MB |", flush=True)
    print("\n| file | resumed at row | seconds to the first batch |\n| --- | --- | --- |")
    for (name, mark), state in states.items():
        if mark < args.rows:
            torch.save(state, folder / "state.pt")
            command = [sys.executable, __file__, "--model", args.model, "--data", args.data]
            command += ["--resume", str(folder / name), str(folder / "state.pt")]
            run = subprocess.run(command, capture_output=True, text=True, check=True)
            print(
                f"| {name.rpartition('.')[2]} | {mark:,} | {json.loads(run.stdout.splitlines()[-1]):.2f} |", flush=True
            )


def write_short_rows(path: Path, rows: int) -> None:
    def parts() -> Iterator[list[dict[str, str]]]:
        for first in range(0, rows, 10_000):
            numbers = range(first, min(first + 10_000, rows))
            yield [{"prompt": f"What is {i}?", "chosen": f" {i} it is.", "rejected": " None."} for i in numbers]

    if path.suffix == ".jsonl":
        with path.open("w") as file:
            for part in parts():
                file.writelines(json.dumps(row) + "\n" for row in part)
        return
    schema = pyarrow.schema([(name, pyarrow.string()) for name in ("prompt", "chosen", "rejected")])
    with parquet.ParquetWriter(path, schema) as writer:
        for part in parts():
            writer.write_table(pyarrow.Table.from_pylist(part, schema))


def first_batch(model: str, file: str, state: str) -> float:
    loader = ours(model, file, 0, batch_size=50)
    start = time.perf_counter()
    loader.load_state_dict(torch.load(state, weights_only=True))
    next(iter(loader))
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
