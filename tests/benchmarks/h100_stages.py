"""The stages of h100.py: each a function, run in a process of its own, that prints its figures as lines of JSON.

usage: python tests/benchmarks/h100_stages.py STAGE --device cuda --size 8b --work DIR      (what h100.py calls)
"""

import argparse
import gc
import json
import random
import resource
import time
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import lightning
import torch
import transformers
from against_trl import cost, matmul_rate
from h100 import MARK, PAIRS
from lightning.pytorch import Callback, Trainer
from random_model import LLAMA_3_8B, TINY_LLAMA, save
from torch._dynamo.utils import counters
from torch.autograd import DeviceType
from transformers import AutoTokenizer

from lit_tr import PreferenceDataModule, PreferenceModule, SoftReferenceUpdate
from lit_tr.data import Rows
from lit_tr.data.formats import explicit_prompt
from lit_tr.data.tokenization import tokenize
from lit_tr.losses import DPO
from lit_tr.policy import LoRA, PretrainedPolicy
from lit_tr.reference import AdapterReference

CONFIGS = {"8b": LLAMA_3_8B, "tiny": TINY_LLAMA}
LENGTHS = {"8b": (280, 404, 340), "tiny": (12, 20, 16)}
"""Mean tokens of a prompt, a chosen and a rejected response: 1,024 in all, shared as in UltraFeedback."""
SPREAD, LONGEST = 0.5, 2.5
"""Standard deviation of the logarithm of a length, and the longest by its mean."""
WARM_UP, TIMED = 3, 6
"""Steps before the clock starts, for compilation and the allocator; steps on the clock."""
STEPS = WARM_UP + TIMED + 2
ALPHA, BETA, LEARNING_RATE, CLIP = 0.6, 0.05, 5e-5, 2.0  # as in configs/base/llama3_8b.yaml


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--device", required=True)
    parser.add_argument("--size", choices=CONFIGS, required=True)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    STAGES[args.stage](args)


def tell(**figures: Any) -> None:
    print(MARK + json.dumps(figures), flush=True)


def make(args: argparse.Namespace) -> None:
    """Write the model and the pairs, and say what a step of these pairs costs."""
    cuda = args.device == "cuda"
    tell(card=torch.cuda.get_device_name() if cuda else "CPU", torch=torch.__version__)
    tell(transformers=transformers.__version__, lightning=lightning.__version__)
    tell(parameters=save(CONFIGS[args.size], args.work / "model", args.device))
    tokenizer, draw = AutoTokenizer.from_pretrained(args.work / "model"), random.Random(0)
    rows = [pair(tokenizer, draw, LENGTHS[args.size]) for _ in range(PAIRS * STEPS)]
    pairs_file(args).write_text("".join(json.dumps(row) + "\n" for row in rows))
    timed = rows[PAIRS * WARM_UP : PAIRS * (WARM_UP + TIMED)]
    examples = [tokenize(explicit_prompt(row), tokenizer) for row in timed]
    step = argparse.Namespace(model=str(args.work / "model"), pairs=PAIRS, lora=True)
    tokens, flops = cost(step, examples)
    tell(packed_tokens=tokens["packed"], padded_tokens=tokens["padded"], flops=flops)


def pair(tokenizer: Any, draw: random.Random, means: tuple[int, ...]) -> dict[str, str]:
    """Return a pair of random words of about so many tokens."""

    def text(mean: int) -> str:
        count = min(int(mean * draw.lognormvariate(-(SPREAD**2) / 2, SPREAD)) + 1, int(LONGEST * mean))
        letters = "".join(draw.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(4 * count))
        return tokenizer.decode(tokenizer(letters)["input_ids"][:count])

    return dict(zip(("prompt", "chosen", "rejected"), map(text, means), strict=True))


def pairs_file(args: argparse.Namespace) -> Path:
    return args.work / "pairs.jsonl"


class Meter:
    """Times steps between two synchronisations; counts the synchronising calls of one more, and profiles another."""

    def __init__(self, device: str) -> None:
        self.cuda, self.steps, self.watching = device == "cuda", 0, ExitStack()

    def end_of_step(self) -> None:
        """Note that a step has ended: the next one begins here."""
        self.steps += 1
        if self.steps == WARM_UP:
            self.start = self.now()
        elif self.steps == WARM_UP + TIMED:
            seconds = (self.now() - self.start) / TIMED
            tell(seconds=seconds, peak_gb=self.peak())
            self.seen = self.watching.enter_context(warnings.catch_warnings(record=True))
            self.watch("warn")
        elif self.steps == WARM_UP + TIMED + 1:
            self.watch("default")
            self.watching.close()
            calls = Counter(place(one) for one in self.seen if "synchronizing CUDA operation" in str(one.message))
            tell(synchronising_calls=sum(calls.values()) if self.cuda else None)
            print("synchronising calls of a step:", *(f"{n:5} {at}" for at, n in calls.most_common()), sep="\n")
            activity = torch.profiler.ProfilerActivity
            self.profile = torch.profiler.profile(activities=[activity.CPU] + [activity.CUDA] * self.cuda)
            self.profile.start()
            self.start = self.now()
        elif self.steps == STEPS:
            elapsed = self.now() - self.start
            self.profile.stop()
            tell(graphs=counters["stats"]["unique_graphs"])
            show(self.profile, elapsed)

    def watch(self, mode: str) -> None:
        warnings.simplefilter("always")
        if self.cuda:
            torch.cuda.set_sync_debug_mode(mode)

    def now(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def peak(self) -> float:
        """Return the most memory so far, in GB: allocated on the card, or resident."""
        if self.cuda:
            return torch.cuda.max_memory_allocated() / 1e9
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def place(warning: warnings.WarningMessage) -> str:
    return f"{'/'.join(Path(warning.filename).parts[-3:])}:{warning.lineno}"


def show(profile: torch.profiler.profile, elapsed: float, most: int = 15) -> None:
    """Print what takes the most time of a step, on the card and on the host."""
    events = profile.key_averages()
    kernels = [one for one in events if one.device_type == DeviceType.CUDA and not one.is_user_annotation]
    busy = sum(one.self_device_time_total for one in kernels) / 1e6
    if kernels:
        tell(busy=busy / elapsed)
    print(f"a step under the profiler: {elapsed:.3f} s, kernels {busy:.3f} s")
    table(kernels, lambda one: one.self_device_time_total, most, "kernels")
    table([one for one in events if one not in kernels], lambda one: one.self_cpu_time_total, most, "on the host")


def table(events: list[Any], microseconds: Callable[[Any], float], most: int, title: str) -> None:
    total = sum(map(microseconds, events)) or 1.0
    print(f"{title}: milliseconds, share, calls, name")
    for one in sorted(events, key=microseconds, reverse=True)[:most]:
        print(f"{microseconds(one) / 1e3:9.2f} {microseconds(one) / total:6.1%} {one.count:6} {one.key[:100]}")


def ours(args: argparse.Namespace, **policy: Any) -> None:
    """Train QLoRA as configs/qlora_1gpu.yaml does, with random weights."""
    meter = Meter(args.device)

    class Clock(Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            meter.end_of_step()

        def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:  # a fit that has ended leaves the card
            tell(update_seconds=median(update_seconds(pl_module, meter) for _ in range(4)))

    module = PreferenceModule(
        PretrainedPolicy(str(args.work / "model"), dtype="bfloat16", quantize="nf4", lora=LoRA(), **policy),
        AdapterReference(),
        DPO(beta=BETA),
        optimizer=lambda params: torch.optim.AdamW(params, lr=LEARNING_RATE, weight_decay=0.0),
    )
    data = PreferenceDataModule(
        str(args.work / "model"),
        Rows(str(pairs_file(args)), chat=False),
        batch_size=PAIRS,
        max_length=2048,
        shuffle=False,
        num_workers=2 if meter.cuda else 0,
        cache_dir=str(args.work / "cache"),
    )
    trainer = Trainer(
        accelerator="gpu" if meter.cuda else "cpu",
        devices=1,
        precision="bf16-mixed",
        max_steps=STEPS,
        gradient_clip_val=CLIP,
        log_every_n_steps=1000,
        callbacks=[SoftReferenceUpdate(alpha=ALPHA, every_n_steps=512), Clock()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, data)
    tell(rate=matmul_rate(args.device, "bfloat16" if meter.cuda else "float32"))


def update_seconds(module: PreferenceModule, meter: Meter) -> float:
    """Return the time of a soft update in weight space."""
    start = meter.now()
    module.reference.update(module.policy, ALPHA)
    return meter.now() - start


def theirs(args: argparse.Namespace) -> None:
    """Train the same with TRL; where a batch does not fit the card, with a half of it, accumulated."""
    for pairs in (PAIRS, PAIRS // 2, PAIRS // 4):
        try:
            return train_with_trl(args, pairs)
        except torch.OutOfMemoryError as error:
            print(f"{pairs} pairs a batch: {error}", flush=True)
        gc.collect()
        torch.cuda.empty_cache()
    raise SystemExit(f"TRL: out of memory with {pairs} pairs a batch")


def train_with_trl(args: argparse.Namespace, pairs: int) -> None:
    from datasets import Dataset
    from peft import LoraConfig
    from torch.utils.data import SequentialSampler
    from transformers import BitsAndBytesConfig, TrainerCallback
    from trl import DPOConfig, DPOTrainer

    meter = Meter(args.device)

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            meter.end_of_step()

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    config = DPOConfig(
        str(args.work / "trl"),
        model_init_kwargs={"dtype": torch.bfloat16, "quantization_config": quantization},
        use_cpu=not meter.cuda,
        bf16=True,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        beta=BETA,
        learning_rate=LEARNING_RATE,
        weight_decay=0.0,
        lr_scheduler_type="constant",
        max_grad_norm=CLIP,
        max_length=2048,
        max_steps=STEPS,
        per_device_train_batch_size=pairs,
        gradient_accumulation_steps=PAIRS // pairs,
        dataloader_num_workers=2 if meter.cuda else 0,
        logging_steps=1000,
        report_to="none",
        disable_tqdm=True,
        save_strategy="no",
    )
    rows = [json.loads(line) for line in pairs_file(args).read_text().splitlines()]
    trainer = InOrder(
        model=str(args.work / "model"),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(args.work / "model"),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )
    trainer.add_callback(Clock())
    tell(pairs_a_batch=pairs)
    trainer.train()


STAGES: dict[str, Callable[[argparse.Namespace], None]] = {
    "make": make,
    "configured": lambda args: ours(args, gradient_checkpointing=True),
    "kept": lambda args: ours(args),
    "compiled": lambda args: ours(args, gradient_checkpointing=True, compile=True),
    "trl": theirs,
}

if __name__ == "__main__":
    main()
