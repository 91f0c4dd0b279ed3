"""A policy that transformers computes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import nn

from lit_tr.data.chat import ChatTemplate, special_tokens
from lit_tr.errors import UserError
from lit_tr.evaluation.generate import Generation, in_batches, stream
from lit_tr.evaluation.kl import Divergence, divergences
from lit_tr.evaluation.prompts import Prompt, Reader
from lit_tr.evaluation.responses import Response
from lit_tr.evaluation.sampling import Sampling
from lit_tr.policy.adapters import adapter_switched, has_adapter

Request = tuple[Prompt, int]
"""A prompt, and the number of a response to it."""
ON_GPU, ON_CPU = 2**16, 2**13
"""Most tokens of a batch where nobody says. Of the first number 28 layers with 8 heads of 128 channels keep 7.5 GB."""

LONGEST_CHARACTER = 4
"""Most bytes of a character in UTF-8, and so most tokens."""


@dataclass
class LocalPolicy:
    """A policy that transformers computes. Its weights are loaded when they are first needed.

    Args:
        name: names it in files of responses.
        tokenizer: its tokenizer.
        context: most tokens of a prompt with its response, if that is known.
        identity: tells it from others, plain data.
        load: returns the model, and the name of the adapter to switch on; None switches adapters off.
        batch_tokens: most tokens of a batch; None takes a number for the device.
        initial: the policy that training began with, if responses are to have the implicit reward of each token.
        beta: what a token's log-ratio to it is multiplied by to be that reward.
    """

    name: str
    tokenizer: Any
    context: int | None
    identity: dict[str, Any]
    load: Callable[[], tuple[nn.Module, str | None]]
    batch_tokens: int | None = None
    initial: "LocalPolicy | None" = None
    beta: float = 1.0

    @contextmanager
    def active(self) -> Iterator[Any]:
        """Yield the model, with the adapter that is this policy's."""
        model, adapter = self._loaded
        if not has_adapter(model):
            yield model
            return
        with adapter_switched(model, adapter):
            yield model

    def without_adapter(self) -> "LocalPolicy":
        """Return the policy with its adapter switched off, on the same weights."""
        return replace(self, load=lambda: (self._loaded[0], None))

    def reader(self, sampling: Sampling) -> Reader:
        """Return what makes prompts of rows, so that responses have room.

        Raises:
            UserError: `max_new_tokens` leaves none.
        """
        room = None if self.context is None else self.context - sampling.max_new_tokens
        if room is not None and room < 1:
            raise UserError(
                f"{self.name}: max_new_tokens {sampling.max_new_tokens} leaves no room for a prompt, for the model "
                f"takes {self.context} tokens in all: give fewer"
            )
        return Reader(self.tokenizer, room)

    def respond(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[list[Response]]:
        """Yield responses, a batch at a time, those to the longest prompts first."""
        prompts = [prompt.ids for prompt, _ in requests]
        keys = [self.key(*one) for one in requests]
        with self.active() as model:
            stops = stops_of(model, self.tokenizer)
            for batch in in_batches(model, self.tokenizer, prompts, keys, sampling, stops, self.room(model)):
                responses = [self._response(*requests[i], made) for i, made in batch]
                yield self._rewarded(responses, [made for _, made in batch]) if self.initial else responses

    def key(self, prompt: Prompt, sample: int) -> str:
        """Return what names a response: its random numbers depend on it."""
        return f"{self.name}\n{prompt.id}\n{sample}"

    def room(self, model: Any) -> int:
        """Return the most tokens of a batch."""
        return self.batch_tokens or (ON_GPU if model.device.type == "cuda" else ON_CPU)

    def say(self, prompt: Prompt, sampling: Sampling, tell: Callable[[str], None]) -> str:
        """Return a response to one prompt, the text of which is told as it grows."""
        with self.active() as model:
            stops = stops_of(model, self.tokenizer)
            return stream(model, self.tokenizer, prompt.ids, prompt.id, sampling, stops, tell).text

    def _response(self, prompt: Prompt, sample: int, made: Generation) -> Response:
        return answered(prompt, sample, self.name, made.text, len(made.response), made.finished)

    def _rewarded(self, responses: list[Response], samples: list[Generation]) -> list[Response]:
        assert self.initial
        tokenized = [sample.tokenized() for sample in samples]
        found = divergences(tokenized, self.active, {"initial": self.initial.active})["initial"]
        return with_token_rewards(responses, samples, found, self.tokenizer.decode, self.beta)

    @cached_property
    def _loaded(self) -> tuple[nn.Module, str | None]:
        return self.load()


def answered(
    prompt: Prompt, sample: int, policy: str, text: str, tokens: int | None, finished: bool | None
) -> Response:
    """Return a response to a prompt, with what the prompt's row had."""
    kept = {name: getattr(prompt, name) for name in ("reference_answer", "chosen", "rejected", "kind")}
    return Response(prompt.id, prompt.shown, text, sample, policy, tokens, finished, **kept)


def with_token_rewards(
    responses: Sequence[Response],
    samples: Sequence[Generation],
    apart: Divergence,
    decode: Callable[[list[int]], str],
    beta: float,
) -> list[Response]:
    """Return responses with their divergence from the initial policy, and the implicit reward of each token.

    Args:
        responses: the responses.
        samples: their token ids.
        apart: the divergence of the policy from the initial one on them.
        decode: returns the text of some tokens.
        beta: what a token's log-ratio is multiplied by to be its implicit reward.
    """
    of_each = zip(
        responses, samples, apart.exact.tolist(), apart.log_ratios.tolist(), apart.token_log_ratios, strict=True
    )
    return [
        replace(
            one,
            kl=kl,
            log_ratio=log_ratio,
            token_rewards=[*zip(token_texts(sample.response, decode), (beta * of_tokens).tolist(), strict=True)],
        )
        for one, sample, kl, log_ratio, of_tokens in of_each
    ]


def token_texts(tokens: Sequence[int], decode: Callable[[list[int]], str]) -> list[str]:
    """Return the text of each token; a character of several tokens is the last one's.

    Args:
        tokens: token ids.
        decode: returns the text of some tokens.
    """
    texts: list[str] = []
    held: list[int] = []
    for number, token in enumerate(tokens, 1):
        held.append(token)
        text = decode(held)
        partial = text.endswith("\ufffd") and len(held) < LONGEST_CHARACTER and number < len(tokens)
        texts.append("" if partial else text)
        held = held if partial else []
    return texts


def stops_of(model: Any, tokenizer: Any) -> list[int]:
    """Return the ids that end a response: those of tokenizer and model, and what the chat template ends turns with."""
    shipped = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = [tokenizer.eos_token_id, *(shipped if isinstance(shipped, list) else [shipped]), _turn_end(tokenizer)]
    return list(dict.fromkeys(one for one in ids if one is not None))


def _turn_end(tokenizer: Any) -> int | None:
    """Return the special token that stands behind an answer, if the chat template writes one there."""
    if not tokenizer.chat_template:
        return None
    said = "So it is."
    chat = [{"role": "user", "content": "Is it?"}, {"role": "assistant", "content": said}]
    behind = ChatTemplate(tokenizer).render(chat).rpartition(said)[2]
    found = special_tokens(tokenizer).match(behind)
    return tokenizer.convert_tokens_to_ids(found[0]) if found else None
