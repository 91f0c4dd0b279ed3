"""The token cache and streams: speed, memory and resume, beside the tokenizer, `datasets.map`, and TRL.

usage: python tests/benchmarks/data_pipeline.py --model DIR --data FILE [--parts cache cache_memory stream
           stream_memory] [--chat] [--cache_rows 61000] [--rows 1000000] [--repeats 3]

cache: rows of UltraFeedback's lengths, made of the words of FILE (Anthropic HH), as prompt, chosen and rejected text.
Seconds of the first start beside those of the tokenizer alone (Rust, all cores), of `datasets.map` with a process for
each core, and of TRL's preparation (with --chat the rows are messages, which each puts into the chat template; the
tokenizer alone is given the texts); seconds from the start of reading to the first batch of the second start; bytes a
token on disk, and private memory that an epoch of batches takes.

cache_memory, stream_memory: private and resident memory with few short rows and with many; of streams also seconds to
the first batch after a resume, in a process of its own.

stream: rows and tokens a second with 0, 1 and 2 workers, ours and datasets + tokenizer + padding in turn, on the rows
of FILE in two shards, and the share of a training step that a batch takes.
"""

import argparse
import json
import os
import random
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
from lit_tr.data.packing import fill
from lit_tr.embedded import TINY, resolve
from lit_tr.policy import PretrainedPolicy, response_log_probs

CORES = len(os.sched_getaffinity(0))
PAIRS = 4
LENGTH = 512


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--parts", nargs="*", default=["cache", "cache_memory", "stream", "stream_memory"])
    parser.add_argument("--chat", action="store_true")
    parser.add_argument("--cache_rows", type=int, default=61_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--resume", nargs=2, metavar=("FILE", "STATE"), help=argparse.SUPPRESS)
    parser.add_argument("--of_cache", metavar="FILE", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.of_cache:
        print(json.dumps(memory_of_cache(args.model, args.of_cache)))
        return
    if args.resume:
        print(json.dumps(first_batch(args.model, *args.resume)))
        return
    with tempfile.TemporaryDirectory() as folder:
        parts = {"cache": cache, "cache_memory": cache_memory, "stream": speed, "stream_memory": memory_and_resume}
        for part in args.parts:
            parts[part](args, Path(folder))


def cache(args: argparse.Namespace, folder: Path) -> None:
    file = folder / "ultrafeedback.jsonl"
    write_long_rows(file, args.data, args.cache_rows, args.chat)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    texts = [text for _, row in Rows(str(file)).rows() for text in three_texts(row, tokenizer)]
    tokens = sum(map(len, encode(tokenizer, texts[:3000]))) / 1000
    print(f"{args.cache_rows:,} rows, about {tokens:.0f} tokens of three texts each; {CORES} cores; medians\n")
    found: dict[str, list[float]] = {"tokenizer alone": [], "lit_tr, first start": [], "datasets.map": [], "TRL": []}
    for number in range(args.repeats):
        found["tokenizer alone"].append(seconds(lambda: encode(tokenizer, texts)))
        found["lit_tr, first start"].append(seconds(lambda at=folder / str(number): cached(args.model, file, at)))
    found["datasets.map"].append(seconds(lambda: mapped(tokenizer, file)))
    found["TRL"].append(by_trl(tokenizer, file))
    print("| | seconds | of the tokenizer alone |\n| --- | --- | --- |")
    for name, taken in found.items():
        print(f"| {name} | {median(taken):.1f} | {median(taken) / median(found['tokenizer alone']):.2f} |", flush=True)
    folder = folder / "0"
    start = time.perf_counter()
    data = cached(args.model, file, folder)
    loader = data.train_dataloader()
    next(iter(loader))
    first, before = time.perf_counter() - start, private()
    sizes = data.examples["train"].sizes(data.collator)
    filling = {budget: seconds(lambda budget=budget: fill(sizes, budget)) for budget in (2 * 2048, 16_384)}
    filled = ", ".join(f"{taken:.2f} s for packs of {budget:,} tokens" for budget, taken in filling.items())
    print(f"\nFilling: {filled}.")
    held = sum(data.examples["train"].column(name).clip(0).sum() for name in ("prompt", "chosen", "rejected"))
    for _ in loader:
        pass
    disk = sum(path.stat().st_size for path in (folder / "cache").iterdir())
    print(
        f"\nSecond start: {first:.2f} s to the first batch. {disk / held:.2f} bytes a token on disk; private memory "
        f"grows by {(private() - before) / 1e6:.0f} MB in an epoch, {(private() - before) / held:.2f} bytes a token.\n",
        flush=True,
    )


def write_long_rows(path: Path, words_of: str, rows: int, chat: bool) -> None:
    words = " ".join(str(row["chosen"]) for _, row in Rows(words_of).rows()).split()
    draw = random.Random(0)

    def text(mean: int) -> str:
        start = draw.randrange(len(words) - 2000)
        return " ".join(words[start : start + min(int(draw.lognormvariate(0, 0.6) * mean) + 1, 700)])

    with path.open("w") as file:
        for _ in range(rows):
            row: dict[str, Any] = {"prompt": text(110), "chosen": " " + text(180), "rejected": " " + text(160)}
            if chat:
                roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
                row = {name: [{"role": roles[name], "content": said.strip()}] for name, said in row.items()}
            file.write(json.dumps(row) + "\n")


def three_texts(row: Any, tokenizer: Any) -> list[str]:
    if isinstance(row["prompt"], list):
        prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        chats = (row["prompt"] + row[name] for name in ("chosen", "rejected"))
        return [prompt, *(tokenizer.apply_chat_template(chat, tokenize=False) for chat in chats)]
    return [row["prompt"], row["prompt"] + row["chosen"], row["prompt"] + row["rejected"]]


def encode(tokenizer: Any, texts: list[str]) -> list[Any]:
    """The tokenizer alone, on all cores."""
    backend = tokenizer.backend_tokenizer
    parts = (backend.encode_batch_fast(texts[i : i + 3000]) for i in range(0, len(texts), 3000))
    return [found.ids for part in parts for found in part]


def cached(model: str, file: Path, folder: Path, **options: Any) -> PreferenceDataModule:
    rows, cache_dir = Rows(str(file), chat=False), str(folder / "cache")
    data = PreferenceDataModule(model, rows, batch_size=PAIRS, max_length=2048, cache_dir=cache_dir, **options)
    data.setup("fit")
    return data


def mapped(tokenizer: Any, file: Path) -> None:
    def ids(rows: dict[str, list[Any]]) -> dict[str, list[list[int]]]:
        each = (dict(zip(rows, row, strict=True)) for row in zip(*rows.values(), strict=True))
        columns = zip(*(three_texts(row, tokenizer) for row in each), strict=True)
        return {f"{name}_ids": tokenizer(list(texts))["input_ids"] for name, texts in zip(rows, columns, strict=True)}

    rows = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(file.parent / "map"))
    rows.map(ids, batched=True, num_proc=CORES)


def by_trl(tokenizer: Any, file: Path) -> float:
    """Seconds of TRL's preparation of the same rows."""
    from trl import DPOConfig, DPOTrainer

    taken = []

    class Timed(DPOTrainer):
        def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            prepared = super()._prepare_dataset(*args, **kwargs)
            taken.append(time.perf_counter() - start)
            return prepared

    start = time.perf_counter()
    rows = datasets.load_dataset("json", data_files=str(file), split="train", cache_dir=str(file.parent / "trl"))
    read = time.perf_counter() - start
    config = DPOConfig(
        tempfile.mkdtemp(), max_length=2048, dataset_num_proc=CORES, use_cpu=True, report_to="none", bf16=False
    )
    Timed(model=str(resolve(TINY)), args=config, train_dataset=rows, processing_class=tokenizer)
    return read + sum(taken)


def cache_memory(args: argparse.Namespace, folder: Path) -> None:
    print(
        "| short rows in the cache | private memory before, after setup, after 10,000 rows in batches |\n| --- | --- |"
    )
    for rows in (10_000, args.rows):
        file = folder / f"{rows}.jsonl"
        write_short_rows(file, rows)
        command = [sys.executable, __file__, "--model", args.model, "--data", args.data, "--of_cache", str(file)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        found = json.loads(run.stdout.splitlines()[-1])
        print(f"| {rows:,} | {', '.join(f'{value / 1e6:.0f} MB' for value in found)} |", flush=True)
    print()


def memory_of_cache(model: str, file: str) -> list[int]:
    AutoTokenizer.from_pretrained(model)
    with tempfile.TemporaryDirectory() as folder:
        found = [private()]
        loader = cached(model, Path(file), Path(folder)).train_dataloader()
        found.append(private())
        for _, _ in zip(range(2500), loader, strict=False):
            pass
        return [*found, private()]


def private() -> int:
    """Bytes of memory that no file holds."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def seconds(run: Any) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


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
    data = PreferenceDataModule(model, Rows(pattern, chat=False), num_workers=workers, **options)
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
