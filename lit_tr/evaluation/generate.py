"""Responses drawn from a policy, in batches of prompts of about the same length."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, TextStreamer

from lit_tr.data.tokenization import TokenizedExample
from lit_tr.errors import UserError
from lit_tr.evaluation.sampling import Draw, Sampling
from lit_tr.policy.logprobs import scoring

NEUTRAL = {
    "do_sample": False,  # `Draw` does, with the options of `Sampling`
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "min_length": 0,
}
"""Options that leave the model's own distribution alone, whatever its `generation_config` says."""


@dataclass(frozen=True)
class Generation:
    """A sampled response.

    Args:
        prompt: token ids of the prompt.
        response: token ids of the response, with its end-of-sequence token if it has one.
        prompt_text: the prompt as text.
        text: the response as text, without special tokens.
        finished: whether it has an end-of-sequence token; False if it was cut at `max_new_tokens`.
    """

    prompt: list[int]
    response: list[int]
    prompt_text: str
    text: str
    finished: bool = True

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
    temperature: float = 1.0,
    top_p: float = 1.0,
    greedy: bool = False,
    samples: int = 1,
    told: Callable[[int], None] | None = None,
) -> list[Generation]:
    """Sample responses to each prompt, by default from the policy's own distribution: temperature 1, no truncation.

    So log-ratios averaged over these samples estimate without bias the KL divergence of responses of at most
    `max_new_tokens`. Each response has random numbers of its own: but for rounding it does not depend on the prompts
    that it shares a batch with. The global random state is neither used nor changed.

    Args:
        model: a causal language model of Hugging Face's interface.
        tokenizer: its tokenizer.
        prompts: token ids of the prompts.
        max_new_tokens: most tokens of a response.
        batch_size: most prompts per batch.
        seed: seed of the samples.
        temperature: what logits are divided by.
        top_p: draw from the likeliest tokens that together have at least this probability.
        greedy: take the likeliest token each time.
        samples: responses to each prompt.
        told: called with the number of responses of each batch once it is there.

    Returns:
        The samples of the first prompt, those of the second, and so on.
    """
    sampling = Sampling(temperature, top_p, 0, greedy, max_new_tokens, samples, seed)
    rows = [prompt for prompt in prompts for _ in range(samples)]
    keys = [f"{number}" for number in range(len(rows))]
    made: list[tuple[int, Generation]] = []
    for batch in in_batches(model, tokenizer, rows, keys, sampling, batch_size=batch_size):
        made += batch
        if told:
            told(len(batch))
    return [one for _, one in sorted(made, key=lambda numbered: numbered[0])]


def in_batches(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    keys: Sequence[str],
    sampling: Sampling,
    stops: Sequence[int] = (),
    most_tokens: int | None = None,
    batch_size: int | None = None,
    steer: Callable[[Tensor], LogitsProcessor] | None = None,
) -> Iterator[list[tuple[int, Generation]]]:
    """Yield one response to each prompt, a batch at a time, the longest prompts first.

    Args:
        model: a causal language model of Hugging Face's interface.
        tokenizer: its tokenizer.
        prompts: token ids of the prompts.
        keys: what names each response; its random numbers depend on it and on the seed alone.
        sampling: the settings; `samples` is not read.
        stops: ids that end a response; by default the tokenizer's end-of-sequence token.
        most_tokens: most tokens of a batch, prompts with padding and responses at their longest. A batch that a GPU has
            no memory for is halved.
        batch_size: most prompts of a batch.
        steer: from the attention mask of the prompts of a batch, `(rows, tokens)`, to what changes the logits that its
            responses are drawn from.

    Yields:
        `(number of the prompt, response)`.
    """
    ends = [*stops] or [tokenizer.eos_token_id]
    todo = list(_batches([len(prompt) + sampling.max_new_tokens for prompt in prompts], most_tokens, batch_size))
    while todo:
        batch = todo.pop(0)
        try:
            with scoring(model):
                inputs = [prompts[i] for i in batch], [keys[i] for i in batch]
                rows = _respond(model, tokenizer, *inputs, sampling, ends, steer=steer)
        except torch.OutOfMemoryError as error:
            if len(batch) == 1:
                raise UserError("generate: a single prompt takes too much memory: lower max_new_tokens") from error
            todo[:0] = [batch[: len(batch) // 2], batch[len(batch) // 2 :]]
            torch.cuda.empty_cache()
        else:
            texts = (_text(tokenizer, prompts[i], row, ends) for i, row in zip(batch, rows, strict=True))
            yield list(zip(batch, texts, strict=True))


class _Told(TextStreamer):
    """Hands on the text of a response as it grows, in whole words."""

    def __init__(self, tokenizer: Any, tell: Callable[[str], None]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._tell = tell

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self._tell(text)


def stream(
    model: Any,
    tokenizer: Any,
    prompt: list[int],
    key: str,
    sampling: Sampling,
    stops: Sequence[int],
    tell: Callable[[str], None],
) -> Generation:
    """Return a response to one prompt, which is told as it grows.

    Args:
        model: a causal language model of Hugging Face's interface.
        tokenizer: its tokenizer.
        prompt: token ids of the prompt.
        key: names the response; its random numbers depend on it and on the seed alone.
        sampling: the settings.
        stops: ids that end a response.
        tell: called with each further piece of the text.
    """
    with scoring(model):
        [row] = _respond(model, tokenizer, [prompt], [key], sampling, [*stops], _Told(tokenizer, tell))
    return _text(tokenizer, prompt, row, [*stops])


def _batches(sizes: Sequence[int], most_tokens: int | None, batch_size: int | None) -> Iterator[list[int]]:
    """Yield numbers of rows, the largest first, each batch within its limits or of a single row."""
    batch: list[int] = []
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        full = batch_size is not None and len(batch) == batch_size
        if batch and (full or (most_tokens is not None and sizes[batch[0]] * (len(batch) + 1) > most_tokens)):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _respond(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    keys: list[str],
    sampling: Sampling,
    ends: list[int],
    streamer: TextStreamer | None = None,
    steer: Callable[[Tensor], LogitsProcessor] | None = None,
) -> list[list[int]]:
    """Return the ids that follow each prompt, up to those of the longest response of the batch."""
    width = max(map(len, prompts))
    pad = ends[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
    mask = (torch.arange(width, device=model.device) >= width - lengths[:, None]).long()
    processors = [] if steer is None else [steer(mask)]
    output: Tensor = model.generate(
        input_ids=torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=model.device),
        attention_mask=mask,
        logits_processor=processors if sampling.is_greedy else [*processors, Draw(sampling, keys, width)],
        **NEUTRAL,
        max_new_tokens=sampling.max_new_tokens,
        pad_token_id=pad,
        eos_token_id=ends,
        streamer=streamer,
    )
    return output[:, width:].tolist()


def _text(tokenizer: Any, prompt: list[int], row: list[int], ends: list[int]) -> Generation:
    end = next((i + 1 for i, token in enumerate(row) if token in ends), None)
    prompt_text, text = (tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, row[:end]))
    return Generation(prompt, row[:end], prompt_text, text, finished=end is not None)
