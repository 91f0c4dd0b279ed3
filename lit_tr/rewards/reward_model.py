"""A reward model as a scorer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lit_tr.data.example import Message, Text
from lit_tr.errors import UserError
from lit_tr.rewards.base import Candidate
from lit_tr.rewards.models import by_length, load_tokenizer, loaded


@dataclass
class RewardModel:
    """Scores responses by a sequence classifier of transformers with one output.

    Prompt and response are laid out by the tokenizer's chat template, or as two texts where it has none.

    Args:
        path: a folder or hub id.
        device: where it runs; None takes a GPU if there is one.
        dtype: precision of the weights; `auto` is that of the files.
        batch_size: responses that are scored at once; those of similar length go together.
        max_length: most tokens of prompt and response; None takes the model's own limit. Of a longer one the score is
            NaN: none is cut.

    Raises:
        UserError: the model cannot be loaded, or has several outputs.
    """

    path: str
    device: str | None = None
    dtype: str = "auto"
    batch_size: int = 16
    max_length: int | None = None

    @property
    def name(self) -> str:
        """The last part of the path."""
        return Path(self.path).name

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the reward of each response."""
        encoded = [self._ids(one.prompt, one.response) for one in candidates]
        scores = [math.nan] * len(encoded)
        short = [number for number, ids in enumerate(encoded) if len(ids) <= self._longest]
        for batch in by_length(short, [len(encoded[number]) for number in short], self.batch_size):
            for number, score in zip(batch, self._rewards([encoded[number] for number in batch]), strict=True):
                scores[number] = score
        return scores

    def _ids(self, prompt: Text, response: str) -> list[int]:
        if not self.tokenizer.chat_template:
            return self.tokenizer(_joined(prompt), response).input_ids
        messages: list[Message] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [*prompt]
        messages = [*messages, {"role": "assistant", "content": response}]
        return self.tokenizer.apply_chat_template(messages, return_dict=True)["input_ids"]

    def _rewards(self, encoded: list[list[int]]) -> list[float]:
        padded = self.tokenizer.pad({"input_ids": encoded}, return_tensors="pt").to(self.model.device)
        with torch.no_grad():
            return self.model(**padded).logits[:, 0].float().tolist()

    @property
    def _longest(self) -> float:
        return self.max_length or getattr(self.model.config, "max_position_embeddings", None) or math.inf

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, which pads on the right."""
        return load_tokenizer(self.path, "right")

    @cached_property
    def model(self) -> Any:
        """The model, in evaluation mode."""
        from transformers import AutoModelForSequenceClassification

        model = loaded(AutoModelForSequenceClassification, self.path, self.device, self.dtype)
        if model.config.num_labels != 1:
            raise UserError(f"{self.path}: a reward model has one output, and this one has {model.config.num_labels}")
        if model.config.pad_token_id is None:
            model.config.pad_token_id = self.tokenizer.pad_token_id  # by which it finds a response's last token
        return model


def _joined(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else "\n\n".join(str(message["content"]) for message in prompt)
