"""A model with random weights of the size of a published one, for benchmarks where nothing can be downloaded.

usage: python tests/benchmarks/random_model.py --output DIR [--config DIR] [--device cuda]

Without --config it is of the size of Llama 3 8B, in bfloat16. The tokenizer is the one that ships with lit_tr, so
that token ids keep below 512.
"""

import argparse
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedConfig

from lit_tr.embedded import TINY, resolve

LLAMA_3_8B = LlamaConfig(
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    max_position_embeddings=8192,
    rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
    tie_word_embeddings=False,
    bos_token_id=None,
)
TINY_LLAMA = LlamaConfig(
    vocab_size=512,
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
    tie_word_embeddings=False,
    bos_token_id=None,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", required=True)
    parser.add_argument("--config")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    config = AutoConfig.from_pretrained(args.config) if args.config else LLAMA_3_8B
    print(f"{save(config, args.output, args.device):,} parameters are in {args.output}")


def save(config: PreTrainedConfig, output: str | Path, device: str = "cpu") -> int:
    """Save a model in bfloat16 with its tokenizer; return the number of its parameters."""
    tokenizer = AutoTokenizer.from_pretrained(resolve(TINY))
    config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return model.num_parameters()


if __name__ == "__main__":
    main()
