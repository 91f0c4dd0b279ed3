"""How responses are drawn from a policy: settings, and random numbers that know nothing of the batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from lit_tr.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """How responses are drawn. The defaults draw from the policy's own distribution, as an estimate of KL needs it.

    Args:
        temperature: what logits are divided by; 0 takes the likeliest token each time, as `greedy` does.
        top_p: draw from the likeliest tokens that together have at least this probability (nucleus sampling,
            arXiv 1904.09751).
        top_k: draw from so many likeliest tokens; 0 draws from all.
        greedy: take the likeliest token each time.
        max_new_tokens: most tokens of a response.
        samples: responses to each prompt.
        seed: seed of the random numbers.

    Raises:
        UserError: a value is out of its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    greedy: bool = False
    max_new_tokens: int = 128
    samples: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = {
            f"temperature must be at least 0, not {self.temperature}": not self.temperature >= 0,
            f"top_p must be in (0, 1], not {self.top_p}": not 0 < self.top_p <= 1,
            f"top_k must be at least 0, not {self.top_k}": self.top_k < 0,
            f"max_new_tokens must be at least 1, not {self.max_new_tokens}": self.max_new_tokens < 1,
            f"samples must be at least 1, not {self.samples}": self.samples < 1,
            f"greedy responses to a prompt are all the same: give one sample, not {self.samples}": self.is_greedy
            and self.samples > 1,
        }
        for message, is_wrong in wrong.items():
            if is_wrong:
                raise UserError(f"generate: {message}")

    @property
    def is_greedy(self) -> bool:
        """Whether nothing is drawn."""
        return self.greedy or self.temperature == 0


class Draw(LogitsProcessor):
    """Draws each next token of each row with that row's own random numbers, so that other rows change nothing.

    transformers' own sampling takes one stream of random numbers for a batch: who stands in it changes all draws. Here
    a uniform number of the row and the position is looked up in the cumulative distribution (inversion sampling), and
    all logits but that of the found token become minus infinity, so that greedy decoding takes it.

    Args:
        sampling: the settings.
        keys: what names each row; rows with the same key and settings get the same numbers.
        start: tokens of the prompts, padding included.
    """

    def __init__(self, sampling: Sampling, keys: Sequence[str], start: int) -> None:
        self._start = start
        self._uniform = torch.from_numpy(np.stack([_uniform(sampling, key) for key in keys]))  # (rows, max_new_tokens)
        self._warpers: list[LogitsProcessor] = []
        if sampling.temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            self._warpers.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores with all but the drawn token at minus infinity, `(rows, vocabulary)`."""
        scores = scores.float()
        for warp in self._warpers:
            scores = warp(input_ids, scores)
        # in float64 where there is one: a float32 sum over 100,000 tokens errs by about 1e-5
        double = torch.float32 if scores.device.type == "mps" else torch.float64
        cumulative = scores.softmax(-1).cumsum(-1, dtype=double)
        uniform = self._uniform[:, input_ids.shape[1] - self._start].to(cumulative)
        drawn = torch.searchsorted(cumulative, (uniform * cumulative[:, -1])[:, None], right=True)
        return torch.full_like(scores, -torch.inf).scatter(-1, drawn.clamp(max=scores.shape[-1] - 1), 0.0)


def _uniform(sampling: Sampling, key: str) -> np.ndarray:
    """Return numbers in [0, 1), one for each position of a row."""
    seed = int.from_bytes(blake2b(f"{sampling.seed}\n{key}".encode(), digest_size=16).digest())
    return np.random.default_rng(seed).random(sampling.max_new_tokens)
