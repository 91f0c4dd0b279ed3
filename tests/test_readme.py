"""The Python of the README runs as it stands."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = [block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "rows = " in block]
SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.mark.parametrize("block", BLOCKS, ids=["list_of_dicts", "dataset_and_model_in_memory"])
def test_rows_and_models_in_memory(block, llama_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(block.splitlines()) <= 15
    found = {}
    exec(block.replace(SMALL, llama_dir).replace("Trainer(", 'Trainer(accelerator="cpu", '), found)
    trainer = found["module"].trainer
    assert trainer.global_step == 4
    assert len(found["data"].examples["train"]) == len(found["rows"])
    update = trainer.callbacks[0]
    assert update.updates == 2
