"""Train the embedded model: `python -m lit_tr.embedded.build DEST`; about 5 minutes on 2 cores.

A byte-level BPE tokenizer and a Llama of about 1M parameters are trained on good and bad responses of the embedded
task's generator, which preference alignment then tells apart.
"""

import random
import sys
from collections.abc import Iterator

import torch
from tokenizers import ByteLevelBPETokenizer, Tokenizer
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_tr.embedded.task import sample_instruction, sample_response

SEED, STEPS, BATCH, LEARNING_RATE = 0, 1500, 64, 3e-3
EOS = "<|end|>"


def main(destination: str) -> None:
    """Train tokenizer and model from the seed and save both."""
    torch.manual_seed(SEED)
    tokenizer = train_tokenizer()
    model = train_model(tokenizer)
    model.to(torch.bfloat16).save_pretrained(destination)
    tokenizer.save_pretrained(destination)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer of 512 tokens, for any text; most words of the task are one token."""
    draw = random.Random(SEED)
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator((text(draw) for _ in range(20_000)), vocab_size=512, special_tokens=[EOS])
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(bpe.to_str()), eos_token=EOS, pad_token=EOS)


def train_model(tokenizer: PreTrainedTokenizerFast, steps: int = STEPS) -> LlamaForCausalLM:
    """Return a Llama trained on instructions with their responses."""
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=5,
        num_attention_heads=4,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    for step, (ids, labels) in zip(range(steps), batches(tokenizer), strict=False):
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step} loss {loss.item():.3f}", flush=True)
    return model


def batches(tokenizer: PreTrainedTokenizerFast) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield token ids and labels, `(BATCH, tokens)`; padding has the label -100."""
    draw = random.Random(SEED + 1)
    while True:
        rows = [torch.tensor([*tokenizer.encode(text(draw)), tokenizer.eos_token_id]) for _ in range(BATCH)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
        lengths = torch.tensor([len(row) for row in rows])
        padding = torch.arange(ids.shape[1]) >= lengths[:, None]
        yield ids, ids.masked_fill(padding, -100)


def text(draw: random.Random) -> str:
    """Draw an instruction with its response."""
    instruction = sample_instruction(draw)
    return instruction + sample_response(instruction, draw)


if __name__ == "__main__":
    main(sys.argv[1])
