import os

os.environ["HF_HUB_OFFLINE"] = "1"  # no test may need a hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import json

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from lit_tr.data.synthetic import SyntheticPairs
from lit_tr.embedded import TINY, resolve

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


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
