"""Responses sampled from a policy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lit_tr.data.tokenization import TokenizedExample
from lit_tr.policy.logprobs import scoring

NEUTRAL = {
    "do_sample": True,
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
}
"""Options that sample from the model's own distribution, whatever its `generation_config` says."""


@dataclass(frozen=True)
class Generation:
    """A sampled response.

    Args:
        prompt: token ids of the prompt.
        response: token ids of the response, with its end-of-sequence token if it has one.
        prompt_text: the prompt as text.
        text: the response as text, without special tokens.
    """

    prompt: list[int]
    response: list[int]
    prompt_text: str
    text: str

    def tokenized(self) -> TokenizedExample:
        """Return prompt and response as an unpaired example, to be scored."""
        return TokenizedExample(self.prompt, self.response, None)


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    max_new_tokens: int = 128,
    batch_size: int = 64,
    seed: int = 0,
) -> list[Generation]:
    """Sample one response to each prompt from the policy's own distribution: temperature 1, no truncation.

    So log-ratios averaged over these samples estimate without bias the KL divergence of responses of at most
    `max_new_tokens`.

    Args:
        model: a causal language model of Hugging Face's interface.
        tokenizer: its tokenizer.
        prompts: token ids of the prompts.
        max_new_tokens: most tokens of a response.
        batch_size: prompts per batch.
        seed: seed of the samples; the global random state is restored.
    """
    devices = [model.device] if model.device.type == "cuda" else []
    with scoring(model), torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        batches = (prompts[i : i + batch_size] for i in range(0, len(prompts), batch_size))
        return [one for batch in batches for one in _sample(model, tokenizer, batch, max_new_tokens)]


def _sample(model: Any, tokenizer: Any, prompts: Sequence[list[int]], max_new_tokens: int) -> Iterator[Generation]:
    width = max(map(len, prompts))
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    output: Tensor = model.generate(
        input_ids=ids,
        attention_mask=(torch.arange(width, device=model.device) >= width - lengths[:, None]).long(),
        **NEUTRAL,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=tokenizer.eos_token_id,
    )
    for prompt, row in zip(prompts, output[:, width:].tolist(), strict=True):
        end = row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
        texts = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, row[:end]))
        yield Generation(prompt, row[:end], *texts)
