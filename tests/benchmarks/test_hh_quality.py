"""The benchmark from training to the report, on random models."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, PhiConfig, PhiForCausalLM

from lit_tr.embedded import TINY, resolve

SCRIPT = Path(__file__).with_name("hh_quality.py")


@pytest.fixture
def judge(tmp_path):
    """Folder of a random model that says A or B, whatever it is asked: its head has a bias."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(TINY))
    config = PhiConfig(
        **{"vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "max_position_embeddings": 4096, "bos_token_id": None},
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = PhiForCausalLM(config)
    model.lm_head.bias.data[tokenizer.convert_tokens_to_ids(["A", "B"])] = 10
    model.save_pretrained(tmp_path / "judge")
    tokenizer.save_pretrained(tmp_path / "judge")
    return tmp_path / "judge"


@pytest.mark.slow
def test_all_phases_run_and_the_figures_are_those_of_the_files(tmp_path, llama_dir, judge, rows):
    data = tmp_path / "hh.jsonl"
    turns = [[f"\n\nHuman: {i}. {row['prompt']}\n\nAssistant:", row] for i, row in enumerate(rows * 2)]
    pairs = [{side: f"{prompt} {row[side]}" for side in ("chosen", "rejected")} for prompt, row in turns]
    data.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    command = [sys.executable, str(SCRIPT), "--model", llama_dir, "--judge", str(judge), "--data", str(data)]
    counts = ["--steps", "2", "--prompts", "3", "--output", str(tmp_path / "runs")]
    run = subprocess.run([*command, *counts], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    [report] = (tmp_path / "runs").glob("*/report.html")
    assert all(name in report.read_text() for name in ("trained", "initial", "chosen", "rejected", "token_rewards"))
    for name, sides in {"judged": "trained over initial", "people": "chosen over rejected"}.items():
        told = json.loads((report.parent / name / "win_rates.json").read_text())
        assert [one["prompts"] for one in told["criteria"].values()] == [3, 3]
        assert f"overall: {sides} {100 * told['criteria']['overall']['win_rate']:.1f} [" in run.stdout
    assert "accuracy of the implicit reward on the held-out pairs" in run.stdout
