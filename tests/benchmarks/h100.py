"""Proof on CUDA and the speed of QLoRA beside TRL, with one command and within nine minutes of one H100.

usage: python tests/benchmarks/h100.py [--device cuda] [--size 8b] [--out DIR]
       python tests/benchmarks/h100.py --device cpu --size tiny              (tries all of it without a card)

The tests of tests/gpu run while a model with random weights is made. Then, each in a process of its own that has the
card for itself, 8B QLoRA trains on pairs of 1,024 tokens: as configured (configs/qlora_1gpu.yaml), with activations
kept, compiled, and with TRL. A stage that fails, or takes more than its limit, is shown with the end of its output, and
takes no other with it. The folder --out gets results.json, table.md, proofs.xml and log.txt, with the synchronising
calls and a profile of one step of each. Ends with 1 if a stage failed or a proof does not hold. docs/gpu.md says more.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
MARK = "RESULT "
"""What a line with figures of a stage begins with."""
PAIRS = 8
"""Pairs a step."""
BESIDE, PROOFS = 140, "proofs"
"""Seconds that the proofs and the making of the model may take, side by side."""
SPEED = {
    "configured": ("lit_tr, as configured", 80),
    "kept": ("lit_tr, no checkpointing", 75),
    "compiled": ("lit_tr, compiled", 130),
    "trl": ("TRL", 90),
}
"""Stages that are timed, one after the other: title, and seconds each may take."""
ON_CPU = 5
"""How much longer each may take without a card."""
FALLBACKS = "torch._dynamo hit config.", "runs uncompiled"
"""What torch and lit_tr say of a function that passes a limit of compilations, and runs eager from then on."""
GOAL_PAIRS, GOAL_TRL, GOAL_RATE, GOAL_UPDATE = 3.0, 3.0, 0.45, 0.01

Figures = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=("8b", "tiny"), default="8b")
    parser.add_argument("--out", type=Path, default=Path("h100_out"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    memory = Path("/dev/shm")  # 16 GB are written and read three times
    with tempfile.TemporaryDirectory(dir=memory if args.size == "8b" and memory.exists() else None) as work:
        sys.exit(measure(args, Path(work)))


def measure(args: argparse.Namespace, work: Path) -> int:
    """Run all stages; return the exit code."""
    started = time.perf_counter()
    log, patience = args.out / "log.txt", 1 if args.device == "cuda" else ON_CPU
    log.unlink(missing_ok=True)
    stages = {"make": start(args, work, "make"), PROOFS: start_proofs(args, work)}
    results = {name: wait(stage, work, name, log, started, BESIDE * patience) for name, stage in stages.items()}
    for name, (_, limit) in SPEED.items():
        stage = start(args, work, name)
        results[name] = wait(stage, work, name, log, time.perf_counter(), limit * patience)
    proofs = read_proofs(args.out / "proofs.xml")
    lines = [about(results["make"]), "", *proof_table(proofs), "", *speed_table(results), "", *goal_table(results)]
    (args.out / "table.md").write_text("\n".join(lines) + "\n")
    (args.out / "results.json").write_text(json.dumps({"stages": results, "proofs": proofs}, indent=1))
    print("\n".join(["", *lines, "", f"{time.perf_counter() - started:.0f} s in all; everything is in {args.out}"]))
    failed = [name for name, figures in results.items() if figures["failed"]]
    return int(bool(failed) or not proofs)


def start(args: argparse.Namespace, work: Path, stage: str) -> subprocess.Popen:
    script = HERE / "h100_stages.py"
    return spawn(work, stage, str(script), stage, f"--device={args.device}", f"--size={args.size}", f"--work={work}")


def start_proofs(args: argparse.Namespace, work: Path) -> subprocess.Popen:
    """Run the tests of tests/gpu, in four processes where a card is there: they compile more than they compute."""
    report = ["--junitxml", str(args.out.absolute() / "proofs.xml"), "-o", "junit_family=xunit1"]
    workers = ["-p", "xdist", "-n", "4" if args.device == "cuda" else "0"]
    options = [f"--device={args.device}", *workers, "-p", "no:cacheprovider"]
    return spawn(work, PROOFS, "-m", "pytest", "-q", str(ROOT / "tests/gpu"), *options, *report)


def spawn(work: Path, name: str, *command: str) -> subprocess.Popen:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(work / "datasets"), "TOKENIZERS_PARALLELISM": "false"}
    memory = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    python = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    environment = {**os.environ, **offline, **memory, **python}
    with (work / f"{name}.log").open("w") as output:
        return subprocess.Popen(
            [sys.executable, *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=ROOT,
            process_group=0,
        )


def wait(stage: subprocess.Popen, work: Path, name: str, log: Path, started: float, limit: float) -> Figures:
    """Return the figures that a stage printed before it ended or its time was over."""
    try:
        code = stage.wait(max(limit - (time.perf_counter() - started), 0))
        failed = f"exit code {code}" if code else None
    except subprocess.TimeoutExpired:
        os.killpg(stage.pid, signal.SIGKILL)  # with its workers
        stage.wait()
        failed = f"over its limit of {limit} s"
    text = (work / f"{name}.log").read_text(errors="replace")
    with log.open("a") as file:
        file.write(f"===== {name}\n{text}\n")
    lines = text.splitlines()
    print(f"{name}: {failed or 'done'}, {time.perf_counter() - started:.0f} s", flush=True)
    if failed:
        print("\n".join(f"    {line}" for line in lines[-15:]), flush=True)
    figures: Figures = {"failed": failed, "fallbacks": sum(map(text.count, FALLBACKS))}
    for line in lines:
        if line.startswith(MARK):
            figures |= json.loads(line.removeprefix(MARK))
    return figures


def read_proofs(report: Path) -> list[Figures]:
    """Return the tests of pytest's report: name, outcome, seconds, and the figures that each one recorded."""
    if not report.exists():
        return []
    proofs = []
    for case in ElementTree.parse(report).iter("testcase"):
        outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "holds")
        figures = {one.get("name"): one.get("value") for one in case.iter("property")}
        name = str(case.get("name")).removeprefix("test_").replace("_", " ")
        proofs.append({"name": name, "outcome": outcome, "seconds": float(case.get("time", 0)), "figures": figures})
    return proofs


def about(made: Figures) -> str:
    versions = ", ".join(f"{name} {made[name]}" for name in ("torch", "transformers", "lightning") if name in made)
    tokens = f"{made.get('packed_tokens', 0):,.0f} packed, {made.get('padded_tokens', 0):,.0f} padded"
    size = f"{made.get('parameters', 0) / 1e9:.2f} billion parameters, NF4, LoRA of rank 16 on all linear layers"
    return f"{made.get('card', 'no card')}; {versions}. {size}; {PAIRS} pairs a step, {tokens} tokens."


def proof_table(proofs: list[Figures]) -> list[str]:
    rows = [
        f"| {one['name']} | {one['outcome']} | {', '.join(f'{k} {v}' for k, v in one['figures'].items())} |"
        for one in proofs
    ]
    return ["| proof | | figures |", "| --- | --- | --- |", *rows]


def speed_table(results: dict[str, Figures]) -> list[str]:
    head = "pairs a second | tokens a second: packed, padded-equivalent | model FLOP/s, of a matrix product's"
    rest = "peak memory | a soft update, of a step | synchronising calls | card busy | graphs, fallbacks to eager"
    rows = [speed_row(results, name) for name in SPEED]
    return [f"| QLoRA | {head} | {rest} |", "| --- " * 9 + "|", *rows]


def speed_row(results: dict[str, Figures], name: str) -> str:
    made, one, title = results["make"], results[name], SPEED[name][0]
    if "seconds" not in one or "flops" not in made:
        return f"| {title} | failed: {one['failed']} |" + " |" * 7
    if one.get("pairs_a_batch", PAIRS) < PAIRS:
        title += f" ({one['pairs_a_batch']} pairs a batch, accumulated)"
    tokens = f"{made['packed_tokens'] / one['seconds']:,.0f}, {made['padded_tokens'] / one['seconds']:,.0f}"
    share = f"{made['flops'] / one['seconds'] / 1e12:.3g} TFLOP/s, {percent(of_rate(results, name))}"
    update = percent(of_step(one))
    cells = [f"{PAIRS / one['seconds']:.2f}", tokens, share, f"{one['peak_gb']:.1f} GB", update]
    graphs = f"{one.get('graphs', 0)}, {one['fallbacks']} |"
    return " | ".join([f"| {title}", *cells, shown(one.get("synchronising_calls")), percent(one.get("busy")), graphs])


def of_rate(results: dict[str, Figures], name: str) -> float | None:
    """Return the model FLOP/s of a stage by those of a large matrix product."""
    flops, rate = results["make"].get("flops"), results["configured"].get("rate")
    seconds = results[name].get("seconds")
    return flops / seconds / rate if flops and rate and seconds else None


def of_step(figures: Figures) -> float | None:
    """Return the time of an update by that of a step."""
    return figures["update_seconds"] / figures["seconds"] if "update_seconds" in figures else None


def goal_table(results: dict[str, Figures]) -> list[str]:
    """Return what is asked of one H100 beside what came out."""
    seconds = {name: results[name].get("seconds") for name in SPEED}
    own = {name: value for name, value in seconds.items() if value and name != "trl"}
    best = min(own, key=own.__getitem__, default="configured")
    same = seconds["trl"] / seconds["configured"] if seconds["trl"] and seconds["configured"] else None
    rows = [
        (f"pairs a second, {SPEED[best][0]}", GOAL_PAIRS, PAIRS / own[best] if own else None),
        ("TRL's time by ours, both with checkpointing", GOAL_TRL, same),
        (f"of a matrix product's FLOP/s, {SPEED[best][0]}", GOAL_RATE, of_rate(results, best)),
        ("a soft update of a step, at most", GOAL_UPDATE, of_step(results[best])),
    ]
    lines = [f"| {title} | {goal:g} | {shown(value and round(value, 3))} |" for title, goal, value in rows]
    return ["| goal on one H100 | asked | measured |", "| --- | --- | --- |", *lines]


def percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def shown(value: Any) -> str:
    return "" if value is None else str(value)


if __name__ == "__main__":
    main()
