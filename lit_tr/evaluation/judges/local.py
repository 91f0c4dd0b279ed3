"""A language model on this machine that answers questions."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from lit_tr.embedded.model import resolve
from lit_tr.evaluation.answers import Answer, Keep, Question
from lit_tr.rewards.models import by_length, load_tokenizer, loaded

LIKELIEST = 100
"""First tokens whose log-probs are kept."""


@dataclass
class LocalModel:
    """A causal language model of transformers that answers questions, in batches of equal lengths.

    Answers in the cache go by the path and by names, sizes and times of the files of a folder, so that new weights in
    the same place are asked again.

    Args:
        path: a folder or hub id.
        device: where it runs; None takes a GPU if there is one.
        dtype: precision of the weights; `auto` is that of the files.
        batch_size: questions that are computed at once.
    """

    path: str
    device: str | None = None
    dtype: str = "auto"
    batch_size: int = 8

    @cached_property
    def name(self) -> str:
        """The path, and for a folder a checksum of what lies in it."""
        folder = Path(resolve(self.path))
        if not folder.is_dir():
            return self.path
        files = sorted((one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in folder.iterdir())
        return f"{folder.resolve().name}@{hashlib.sha256(repr(files).encode()).hexdigest()[:12]}"

    def answer(self, questions: Sequence[Question], keep: Keep) -> None:
        """Compute answers; those of one token with the log-probs of the likeliest, of others the likeliest text."""
        for kind in dict.fromkeys((one.max_tokens, one.temperature, one.draw) for one in questions):
            same = [one for one in questions if (one.max_tokens, one.temperature, one.draw) == kind]
            for batch in by_length(same, [one.size for one in same], self.batch_size):
                for question, answer in zip(batch, self._answers(batch), strict=True):
                    keep(question, answer)

    def _answers(self, questions: list[Question]) -> Iterator[Answer]:
        encoded = self.tokenizer([self._text(one) for one in questions], **self._encoding).to(self.model.device)
        lengths = encoded["attention_mask"].sum(-1).tolist()
        with torch.no_grad():
            if questions[0].max_tokens == 1:
                yield from self._first_tokens(encoded, lengths)
            else:
                yield from self._texts(encoded, lengths, questions[0])

    def _first_tokens(self, encoded: Any, lengths: list[int]) -> Iterator[Answer]:
        positions = (encoded["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        logits = self.model(**encoded, position_ids=positions, logits_to_keep=1).logits[:, -1]
        values, tokens = logits.float().log_softmax(-1).topk(min(LIKELIEST, logits.shape[-1]))
        for row, ids, length in zip(values.tolist(), tokens.tolist(), lengths, strict=True):
            texts = [self.tokenizer.decode([token]) for token in ids]
            first = dict(zip(reversed(texts), reversed(row), strict=True))  # of equal texts the likeliest
            yield Answer(texts[0], first, length, 1)

    def _texts(self, encoded: Any, lengths: list[int], question: Question) -> Iterator[Answer]:
        how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_k": None, "top_p": None}
        if question.temperature:
            how = {"do_sample": True, "temperature": question.temperature, "top_k": 0, "top_p": 1.0}
        with torch.random.fork_rng(devices=[self.model.device] if self.model.device.type == "cuda" else []):
            torch.manual_seed(question.draw)
            made = self.model.generate(
                **encoded, **how, max_new_tokens=question.max_tokens, pad_token_id=self.tokenizer.pad_token_id
            )
        for row, length in zip(made[:, encoded["input_ids"].shape[1] :], lengths, strict=True):
            text = self.tokenizer.decode(row, skip_special_tokens=True)
            yield Answer(text, None, length, int((row != self.tokenizer.pad_token_id).sum()))

    def _text(self, question: Question) -> str:
        if not self.tokenizer.chat_template:
            return "\n\n".join(text for _, text in question.messages) + "\n\n"
        messages = [{"role": role, "content": text} for role, text in question.messages]
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    @property
    def _encoding(self) -> dict[str, Any]:
        special = not self.tokenizer.chat_template  # a chat template writes its own
        return {"return_tensors": "pt", "padding": True, "add_special_tokens": special, "return_token_type_ids": False}

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, which pads on the left."""
        return load_tokenizer(self.path, "left")

    @cached_property
    def model(self) -> Any:
        """The model, in evaluation mode.

        Raises:
            UserError: it cannot be loaded.
        """
        from transformers import AutoModelForCausalLM

        return loaded(AutoModelForCausalLM, self.path, self.device, self.dtype)
