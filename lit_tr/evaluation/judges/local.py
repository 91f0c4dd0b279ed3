"""A language model on this machine that answers questions."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lit_tr.embedded.model import resolve
from lit_tr.evaluation.answers import Answer, Keep, Question
from lit_tr.evaluation.generate import in_batches
from lit_tr.evaluation.local import LocalPolicy, stops_of
from lit_tr.evaluation.policies import Loading, open_policies
from lit_tr.evaluation.sampling import Sampling
from lit_tr.policy.logprobs import scoring
from lit_tr.rewards.models import by_length

LIKELIEST = 100
"""First tokens whose log-probs are kept."""


@dataclass
class LocalModel:
    """A causal language model of transformers that answers questions, in batches of equal lengths.

    An answer that is drawn has random numbers of its own: but for rounding it does not depend on what else is asked.
    Answers in the cache go by the path and by names, sizes and times of the files of a folder, so that new weights in
    the same place are asked again.

    Args:
        path: a folder or hub id, of a model or of an adapter, whose base it names.
        device: where it runs; None takes a GPU if there is one.
        dtype: precision of the weights; `auto` is that of the files.
        batch_size: questions that are computed at once.
        quantize: `nf4` puts the model, or the base of an adapter, into 4 bits.
    """

    path: str
    device: str | None = None
    dtype: str = "auto"
    batch_size: int = 8
    quantize: Literal["nf4"] | None = None

    @cached_property
    def name(self) -> str:
        """The path, for a folder a checksum of what lies in it, and whether it is in 4 bits."""
        return self._files + (f" in {self.quantize}" if self.quantize else "")

    @property
    def _files(self) -> str:
        folder = Path(resolve(self.path))
        if not folder.is_dir():
            return self.path
        files = sorted((one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in folder.iterdir())
        return f"{folder.resolve().name}@{hashlib.sha256(repr(files).encode()).hexdigest()[:12]}"

    def answer(self, questions: Sequence[Question], keep: Keep) -> None:
        """Compute answers; those of one token with the log-probs of the likeliest, of others the text.

        A question that leaves no room for an answer in the model's context has an empty one.
        """
        for kind in dict.fromkeys(map(_kind, questions)):
            asked = [(one, self._ids(one)) for one in questions if _kind(one) == kind]
            room = (self.policy.context or math.inf) - kind[0]
            fitting = [(one, ids) for one, ids in asked if len(ids) <= room]
            for one, ids in asked:
                if len(ids) > room:
                    keep(one, Answer("", None, len(ids)))
            answers = self._first_tokens if kind[0] == 1 else self._texts
            with self.policy.active() as model:
                for number, answer in answers(model, *zip(*fitting, strict=True)) if fitting else ():
                    keep(fitting[number][0], answer)

    def _first_tokens(
        self, model: Any, questions: Sequence[Question], ids: Sequence[list[int]]
    ) -> Iterator[tuple[int, Answer]]:
        for batch in by_length(range(len(ids)), [len(one) for one in ids], self.batch_size):
            encoded = self.tokenizer.pad({"input_ids": [ids[i] for i in batch]}, return_tensors="pt").to(model.device)
            positions = (encoded["attention_mask"].cumsum(-1) - 1).clamp(min=0)
            with scoring(model):
                logits = model(**encoded, position_ids=positions, logits_to_keep=1).logits[:, -1]
            values, tokens = logits.float().log_softmax(-1).topk(min(LIKELIEST, logits.shape[-1]))
            for i, row, likeliest in zip(batch, values.tolist(), tokens.tolist(), strict=True):
                texts = [self.tokenizer.decode([token]) for token in likeliest]
                first = dict(zip(reversed(texts), reversed(row), strict=True))  # of equal texts the likeliest
                yield i, Answer(texts[0], first, len(ids[i]), 1)

    def _texts(
        self, model: Any, questions: Sequence[Question], ids: Sequence[list[int]]
    ) -> Iterator[tuple[int, Answer]]:
        how, keys = questions[0], [one.key(self.name) for one in questions]
        sampling = Sampling(how.temperature, how.top_p, max_new_tokens=how.max_tokens, seed=how.draw)
        stops = stops_of(model, self.tokenizer)
        for batch in in_batches(model, self.tokenizer, ids, keys, sampling, stops, batch_size=self.batch_size):
            for i, made in batch:
                yield i, Answer(made.text, None, len(made.prompt), len(made.response))

    def _ids(self, question: Question) -> list[int]:
        if not self.tokenizer.chat_template:
            return self.tokenizer("\n\n".join(text for _, text in question.messages) + "\n\n").input_ids
        messages = [{"role": role, "content": text} for role, text in question.messages]
        encoded = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        return encoded["input_ids"]

    @cached_property
    def policy(self) -> LocalPolicy:
        """The model and its tokenizer; no weights are loaded yet.

        Raises:
            UserError: there is no such model.
        """
        dtype: Any = None if self.dtype == "auto" else self.dtype
        [found] = open_policies([self.path], Loading(dtype, quantize=self.quantize, device=self.device))
        return found

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, which pads on the left."""
        tokenizer = self.policy.tokenizer
        tokenizer.padding_side = "left"
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        return tokenizer


def _kind(question: Question) -> tuple[int, float, float, int]:
    return question.max_tokens, question.temperature, question.top_p, question.draw
