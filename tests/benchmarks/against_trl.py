"""TR-DPO steps of lit_tr and of TRL side by side: time, peak memory, and model FLOP/s beside the machine's own.

usage: python tests/benchmarks/against_trl.py --model DIR --data FILE [--pairs 4] [--steps 8] [--repeats 3] [--lora]
           [--quantize] [--compile] [--selective] [--alone] [--device cuda] [--dtype float32]
           [--lengths 512 1024 2048 4096 8192]

Each run is a process of its own, lit_tr and TRL in turn, on the same pairs in the same order: HH rows that fit in 512
tokens, bfloat16 (--dtype float32 where a CPU multiplies no bfloat16), fused AdamW, clipping, a soft update of the
reference each step. The first two steps of a run are left out. With --lora, TRL's reference is the frozen base, for it
refuses a moving one there; lit_tr's moves. --quantize does so on an NF4 base. --compile compiles lit_tr's layers.
With --selective, lit_tr's layers keep matrix products and attention alone. --alone leaves TRL out. Memory is the peak
of what is resident, on CUDA of what is allocated there. random_model.py makes a model of any size to measure.

At the end, lit_tr's peak memory in two steps of one pack that is filled with pairs up to each of some lengths.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from statistics import median

WARM_UP = 2
MAX_LENGTH = 512
BETA, ALPHA, LEARNING_RATE, CLIP = 0.05, 0.6, 1e-6, 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--quantize", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--selective", action="store_true")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--lengths", type=int, nargs="*", default=[512, 1024, 2048, 4096, 8192])
    parser.add_argument("--worker", choices=("lit_tr", "trl"))
    args = parser.parse_args()
    args.lora |= args.quantize
    if args.worker:
        worker(args)
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.jsonl"
        examples, lines = read(args)
        pairs.write_text("".join(lines[: args.pairs * args.steps]))
        tokens, flops = cost(args, examples[: args.pairs * args.steps])
        results: dict[str, list[dict]] = {"lit_tr": []} if args.alone else {"lit_tr": [], "trl": []}
        rates = []
        for _ in range(args.repeats):
            for name in results:
                rates.append(matmul_rate(args.device, args.dtype))
                results[name].append(run(args, name, pairs))
        memory = [memory_of_pack(args, length, examples, lines, pairs) for length in args.lengths]
    rate = median(rates)
    kind = "LoRA on NF4" if args.quantize else "LoRA" if args.lora else "full model"
    print(f"{args.pairs} pairs a step, {kind}, {args.device}; {args.dtype} matrix product: {rate / 1e9:.0f} GFLOP/s")
    print(f"tokens a step: {tokens['packed']:.0f} packed, {tokens['padded']:.0f} padded")
    summary = {name: summarize(runs) for name, runs in results.items()}
    print(
        "| | seconds a step (median, least to most) | peak memory | pairs, tokens a second | model FLOP/s | of the "
        "matrix product |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for name, (seconds, least, most, peak) in summary.items():
        speed = flops / seconds
        amount = tokens["packed" if name == "lit_tr" else "padded"]
        share = f"{args.pairs / seconds:.2f}, {amount / seconds:.0f} | {speed / 1e9:.0f} GFLOP/s | {speed / rate:.0%}"
        print(f"| {name} | {seconds:.2f} ({least:.2f} to {most:.2f}) | {peak:.2f} GB | {share} |")
    if not args.alone:
        ours, theirs = summary["lit_tr"], summary["trl"]
        print(f"TRL / lit_tr step time: {theirs[0] / ours[0]:.2f}; lit_tr / TRL peak memory: {ours[3] / theirs[3]:.2f}")
    if memory:
        print("\n| tokens in one pack | response tokens | peak memory | more than the pack before, a token |")
        print("| --- | --- | --- | --- |")
        before = None
        for tokens_in, responses, peak in memory:
            slope = f"{(peak - before[1]) / (tokens_in - before[0]) * 1e3:.2f} MB" if before else ""
            print(f"| {tokens_in} | {responses} | {peak:.2f} GB | {slope} |")
            before = tokens_in, peak


def read(args: argparse.Namespace) -> tuple[list, list[str]]:
    """Return the pairs that fit, tokenized and as lines."""
    from transformers import AutoTokenizer

    from lit_tr.data import Rows
    from lit_tr.data.formats import implicit_prompt
    from lit_tr.data.tokenization import tokenize
    from lit_tr.errors import BadRowError

    tokenizer, examples, lines = AutoTokenizer.from_pretrained(args.model), [], []
    most = max(args.pairs * args.steps, max(args.lengths, default=0) // 64)
    for _, row in Rows(args.data).rows():
        try:
            example = implicit_prompt(row)
        except BadRowError:
            continue
        tokenized = tokenize(example, tokenizer)
        if len(tokenized.prompt) + max(map(len, tokenized.responses)) <= MAX_LENGTH:
            examples.append(tokenized)
            lines.append(json.dumps({name: getattr(example, name) for name in ("prompt", "chosen", "rejected")}) + "\n")
        if len(lines) == most:
            break
    return examples, lines


def cost(args: argparse.Namespace, examples: list) -> tuple[dict[str, float], float]:
    """Return tokens a step by layout, and the model FLOPs that a step needs."""
    from transformers import AutoConfig

    from lit_tr.data import Collator

    timed = range(WARM_UP * args.pairs, len(examples), args.pairs)
    batches = [examples[i : i + args.pairs] for i in timed]
    packed = [Collator()(batch) for batch in batches]
    tokens = {
        "packed": sum(batch.input_ids.numel() for batch in packed) / len(batches),
        "padded": sum(Collator(packed=False)(batch).input_ids.numel() for batch in batches) / len(batches),
    }
    config = AutoConfig.from_pretrained(args.model)
    responses = sum(len(batch.targets) for batch in packed) / len(batches)
    # forward and backward of the policy, forward of the reference; no weight gradients of a frozen base
    passes = (2 + (2 if args.lora else 4)) + 2
    return tokens, passes * (
        layer_parameters(config) * tokens["packed"] + config.vocab_size * config.hidden_size * responses
    )


def memory_of_pack(args: argparse.Namespace, length: int, examples: list, lines: list[str], pairs: Path) -> tuple:
    """Return tokens, response tokens and peak memory in GB of steps with the first pairs that keep within a length."""
    from lit_tr.data import Collator

    sizes = list(accumulate(map(Collator().tokens, examples)))
    count = bisect_right(sizes, length)
    pairs.write_text("".join(lines[:count] * 2))
    responses = sum(len(ids) for example in examples[:count] for ids in example.responses)
    once = argparse.Namespace(**{**vars(args), "pairs": count, "steps": 2})
    return sizes[count - 1], responses, run(once, "lit_tr", pairs)["peak"]


def layer_parameters(config) -> int:
    head = config.hidden_size // config.num_attention_heads
    attention = config.hidden_size * head * 2 * (config.num_attention_heads + config.num_key_value_heads)
    return config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size)


def matmul_rate(device: str, dtype: str, times: int = 10) -> float:
    """FLOP/s of a matrix product."""
    import torch

    size = 2048 if device == "cpu" else 8192
    one = torch.randn(size, size, dtype=getattr(torch, dtype), device=device)
    (one @ one).sum().item()
    start = time.perf_counter()
    for _ in range(times):
        product = one @ one
    product.sum().item()
    return times * 2 * size**3 / (time.perf_counter() - start)


def run(args: argparse.Namespace, name: str, pairs: Path) -> dict:
    command = [sys.executable, __file__, f"--model={args.model}", f"--data={pairs}", f"--pairs={args.pairs}"]
    flags = [f"--{flag}" for flag in ("lora", "quantize", "compile", "selective") if getattr(args, flag)]
    options = [f"--steps={args.steps}", f"--worker={name}", f"--device={args.device}", f"--dtype={args.dtype}", *flags]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"the {name} run failed")
    times, allocated = json.loads(output.splitlines()[-1])
    return {"times": times[WARM_UP:], "peak": usage.ru_maxrss / 1e6 if args.device == "cpu" else allocated / 1e9}


def summarize(runs: list[dict]) -> tuple[float, float, float, float]:
    """Median, least and most of the runs' mean seconds a step, and the most memory in GB."""
    seconds = [sum(run["times"]) / len(run["times"]) for run in runs]
    return median(seconds), min(seconds), max(seconds), max(run["peak"] for run in runs)


def worker(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    times = with_lit_tr(args) if args.worker == "lit_tr" else with_trl(args)
    print(json.dumps([times, torch.cuda.max_memory_allocated() if args.device == "cuda" else None]))


def now(device: str) -> float:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def with_lit_tr(args: argparse.Namespace) -> list[float]:
    import torch
    from lightning.pytorch import Callback, Trainer

    from lit_tr import PreferenceDataModule, PreferenceModule, SoftReferenceUpdate
    from lit_tr.data import Rows
    from lit_tr.losses import DPO
    from lit_tr.policy import LoRA, PretrainedPolicy
    from lit_tr.reference import AdapterReference, CopyReference

    device = args.device

    class Clock(Callback):
        """Stands behind the update of the reference, so that its time counts."""

        def __init__(self) -> None:
            self.marks = []

        def on_train_start(self, *args: object) -> None:
            self.marks.append(now(device))

        def on_train_batch_end(self, *args: object) -> None:
            self.marks.append(now(device))

    clock = Clock()
    module = PreferenceModule(
        PretrainedPolicy(
            args.model,
            dtype=args.dtype,
            quantize="nf4" if args.quantize else None,
            lora=LoRA() if args.lora else None,
            compile=args.compile,
            gradient_checkpointing="selective" if args.selective else False,
        ),
        AdapterReference() if args.lora else CopyReference("plain"),  # plain bfloat16 sums, as TRL makes them
        DPO(beta=BETA),
        optimizer=lambda params: torch.optim.AdamW(params, lr=LEARNING_RATE, weight_decay=0.0, fused=True),
        log_initial=False,
    )
    data = PreferenceDataModule(
        args.model, Rows(args.data, chat=False), batch_size=args.pairs, max_length=MAX_LENGTH, shuffle=False
    )
    trainer = Trainer(
        accelerator=args.device,
        devices=1,
        max_steps=args.steps,
        gradient_clip_val=CLIP,
        callbacks=[SoftReferenceUpdate(alpha=ALPHA), clock],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    return [after - before for before, after in zip(clock.marks, clock.marks[1:], strict=False)]


def with_trl(args: argparse.Namespace) -> list[float]:
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from transformers import AutoTokenizer, BitsAndBytesConfig, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    device = args.device

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.marks = []

        def on_train_begin(self, *args: object, **kwargs: object) -> None:
            self.marks.append(now(device))

        def on_step_end(self, *args: object, **kwargs: object) -> None:
            self.marks.append(now(device))

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, dataset=None):
            return SequentialSampler(self.train_dataset)

    clock = Clock()
    sync = {} if args.lora else {"sync_ref_model": True, "ref_model_mixup_alpha": ALPHA, "ref_model_sync_steps": 1}
    load = {"dtype": getattr(torch, args.dtype)}
    if args.quantize:
        load["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=getattr(torch, args.dtype),
        )
    config = DPOConfig(
        tempfile.mkdtemp(),
        model_init_kwargs=load,
        use_cpu=args.device == "cpu",
        bf16=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
        gradient_checkpointing=False,
        beta=BETA,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        optim="adamw_torch_fused",
        max_grad_norm=CLIP,
        max_length=MAX_LENGTH,
        max_steps=args.steps,
        per_device_train_batch_size=args.pairs,
        **sync,
    )
    rows = [json.loads(line) for line in Path(args.data).read_text().splitlines()]
    trainer = InOrder(
        model=args.model,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(args.model),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear") if args.lora else None,
    )
    trainer.add_callback(clock)
    trainer.train()
    return [after - before for before, after in zip(clock.marks, clock.marks[1:], strict=False)]


if __name__ == "__main__":
    main()
