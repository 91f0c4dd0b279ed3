import atexit
import os
import shutil
import socket
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need a hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_DATASETS_CACHE"] = tempfile.mkdtemp(prefix="lit_tr-tests-")

import json

import pytest
import torch
import yaml
from huggingface_hub import constants
from hypothesis import settings
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lit_tr.embedded import TINY, resolve
from lit_tr.embedded.task import SyntheticPairs

atexit.register(shutil.rmtree, os.environ["HF_DATASETS_CACHE"], ignore_errors=True)
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
settings.register_profile("patient", deadline=None)  # a busy machine, or the first of many calls, is slow
settings.load_profile("patient")


@pytest.fixture(autouse=True)
def no_process_group_stays():
    """End the process group of a trainer of this test, with the port that processes of later tests would inherit."""
    before = set(os.environ)
    yield
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    for name in {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"} - before:
        os.environ.pop(name, None)


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(resolve(TINY))


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory, tokenizer):
    """Folder of a random Llama in float32, with the embedded tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def rows():
    """Pairs of the embedded task, with responses of different lengths."""
    return [row for _, row in SyntheticPairs(size=160, seed=5).rows()]


@pytest.fixture
def write_rows(tmp_path):
    """Write rows as JSON lines; return the path."""

    def write(rows, name="rows.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.fixture
def config(tmp_path, llama_dir):
    """A config of a short run."""
    synthetic = {"class_path": "lit_tr.embedded.SyntheticPairs", "init_args": {"size": 16}}
    content = {
        "seed_everything": 1,
        "trainer": {
            "default_root_dir": str(tmp_path / "run"),
            "accelerator": "cpu",
            "max_steps": 4,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "log_every_n_steps": 1,
        },
        "model": {
            "policy": {"path": llama_dir},
            "reference": "lit_tr.reference.CopyReference",
            "loss": {"class_path": "lit_tr.losses.DPO", "init_args": {"beta": 0.1}},
            "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01}},
        },
        "update": {"class_path": "lit_tr.SoftReferenceUpdate", "init_args": {"alpha": 0.5, "every_n_steps": 2}},
        "data": {"train": synthetic, "val": synthetic, "batch_size": 4},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.dump(content))
    return str(path)


@pytest.fixture
def no_hub(monkeypatch, tmp_path):
    """The address of a hub that does not answer, beside an empty cache in `tmp_path`."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    return address
