from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from lit_tr.commands import main, plan
from tests.runs import fails


def test_a_run_is_planned_without_weights(config, tmp_path, capsys, llama_dir, tokenizer, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    bare = tmp_path / "bare"
    tokenizer.save_pretrained(bare)
    (bare / "config.json").write_bytes((Path(llama_dir) / "config.json").read_bytes())
    options = ["--model.policy.path", str(bare), "--data.max_length", "32", "--memory", "5MB", "--flops", "1e9"]
    main(["plan", "--config", config, *options])
    said = capsys.readouterr().out
    assert "configured: CopyReference" in said
    assert "padded rows of 4 examples" in said
    assert "16 examples" in said
    assert "hours of training, 4 steps" in " ".join(said.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("loss", "windows"), [("DPO", True), ("TDPO2", False)])
def test_a_plan_offers_references_that_the_loss_takes(config, capsys, loss, windows):
    main(["plan", "--config", config, f"--model.loss={loss}", "--update=lit_tr.HardReferenceUpdate"])
    assert ("Window" in capsys.readouterr().out) is windows


def test_plan_refuses_a_strategy_that_fit_refuses(config, capsys):
    assert "does not train under fsdp" in fails(capsys, "plan", "--config", config, "--trainer.strategy=fsdp")


@pytest.mark.slow
def test_plan_of_shards_counts_what_loading_takes(config, capsys, llama_dir, tokenizer, tmp_path):
    wide = LlamaConfig.from_pretrained(llama_dir, intermediate_size=4096, num_hidden_layers=16)
    wide.save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    strategy = "--trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy"
    options = [
        "--data.max_length=32",
        "--data.batch_size=1",
        "--devices=8",
        "--memory=45MB",
        "--model.policy.gradient_checkpointing=true",
    ]
    main(["plan", "--config", config, strategy, f"--model.policy.path={tmp_path / 'wide'}", *options])
    said = capsys.readouterr().out
    assert "while loading  51.00 MB of host memory on rank 0, before all weights are sharded" in said
    assert "peak 22.36 MB, fits" in said  # on a device, which holds no whole weights


def test_plan_refuses_what_is_no_size(config, capsys):
    assert "such as 80GiB" in fails(capsys, "plan", "--config", config, "--memory", "much")


def test_memory_is_by_default_that_of_the_first_cuda_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert plan._device() == (None, None)
    card = SimpleNamespace(total_memory=8 * 10**10, name="NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert plan._device() == (card.total_memory, card.name)
