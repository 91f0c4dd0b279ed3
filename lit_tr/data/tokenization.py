"""Example -> token ids, the prompt shared by both responses."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from lit_tr.data.chat import check_special, render, spans
from lit_tr.data.example import Example, Message, Text
from lit_tr.errors import BadRowError, UserError

Turns = Literal["last", "all"]

NO_ROOM = "a response leaves no room for a prompt"


@dataclass(frozen=True)
class TokenizedExample:
    """Token ids of an example.

    Args:
        prompt: ids that the model is given, the same for both responses.
        chosen: ids of the preferred response, its end-of-sequence token with them; None where there is no such
            response.
        rejected: the same of the other response.
        margin: by how much the chosen one is rated above the rejected one, in the units of the source.
        confidence: probability that the label is right.
        chosen_scored: which ids of the preferred response are scored, the others being context; None scores all.
        rejected_scored: the same of the other response.
        labels: further labels by name, of the chosen and of the rejected response.
        truncated: how many tokens of the prompt were taken off.
        ahead: precomputed reference log-probs, if there are any.
    """

    prompt: list[int]
    chosen: list[int] | None
    rejected: list[int] | None
    margin: float = 0.0
    confidence: float = 1.0
    chosen_scored: list[bool] | None = None
    rejected_scored: list[bool] | None = None
    labels: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    truncated: int = field(default=0, compare=False)
    ahead: "Ahead | None" = field(default=None, compare=False)

    @property
    def responses(self) -> list[list[int]]:
        """The responses that there are, chosen first."""
        return [ids for ids in (self.chosen, self.rejected) if ids is not None]


@dataclass(frozen=True)
class Ahead:
    """Precomputed reference log-probs of an example.

    Args:
        log_probs: log-probs of each of its `responses`, `(scored tokens,)`.
        kl_rows: for KTO, its prompt with borrowed responses, one each.
        kl_log_probs: log-probs of each of these, `(scored tokens,)`.
    """

    log_probs: list[Tensor]
    kl_rows: list[TokenizedExample]
    kl_log_probs: list[Tensor]


def tokenize(
    example: Example, tokenizer: Any, turns: Turns = "last", max_length: int | None = None
) -> TokenizedExample:
    r"""Tokenize prompt and response as one text and split them where the tokens of the prompt end.

    A token that runs over the seam (`"\n"` and `"\n"` becoming one token) belongs to the response, in both
    responses: so no text is lost, and both see the very same prompt. TRL splits them at the same token. An
    end-of-sequence token closes a response unless the tokenizer or its chat template has put one in already. Special
    tokens written out in plain text stay text; a chat message that spells one is refused.

    Of a response of several messages only those of the assistant are scored, and the others are context. Messages
    after the last one of the assistant are left out. The assistant's earlier turns in a prompt are never scored: both
    responses share them, and what they add to a difference of log-probs is 0.

    Args:
        example: prompt and responses, as text or as chat messages.
        tokenizer: a Hugging Face tokenizer; for messages it must have a chat template.
        turns: score the `last` message of the assistant in each response, or `all` of them.
        max_length: a response of more tokens is refused before its turns are looked for.

    Raises:
        BadRowError: the example cannot be tokenized.
        UserError: the rows are chat messages, and the tokenizer has no chat template; or a response has several
            messages, and the tokenizer is a slow one that cannot tell which tokens are whose.
    """
    pair = (example.chosen, example.rejected)
    responses = [text if text is None else _up_to_last_turn(text) for text in pair]
    if responses[0] == responses[1]:
        raise BadRowError("chosen and rejected are equal")
    given = [text for text in responses if text is not None]
    prompt, *encoded = _encode(example.prompt, [None, *given], tokenizer)
    found = iter(encoded)
    wholes = [None if text is None else next(found) for text in responses]
    seam = min(_common_prefix(prompt, whole) for whole in wholes if whole is not None)
    if seam == 0:
        raise BadRowError("the prompt has no tokens of its own", repr(example.prompt)[-80:])
    longest = max(len(whole) - seam for whole in wholes if whole is not None)
    if max_length is not None and longest > max_length:
        raise BadRowError(NO_ROOM, f"{longest} tokens, max_length {max_length}")
    parts = [
        (None, None) if text is None or whole is None else _part(example.prompt, text, whole, seam, tokenizer, turns)
        for text, whole in zip(responses, wholes, strict=True)
    ]
    (chosen, chosen_scored), (rejected, rejected_scored) = parts
    return TokenizedExample(
        prompt[:seam],
        chosen,
        rejected,
        example.margin,
        example.confidence,
        chosen_scored,
        rejected_scored,
        example.labels,
    )


def fit(example: TokenizedExample, max_length: int, cut_prompt: bool, bos: int | None) -> TokenizedExample:
    """Cut the prompt on the left until prompt and longer response fit; a first BOS token is kept, a response never cut.

    Args:
        example: what to fit.
        max_length: most tokens of prompt and one response.
        cut_prompt: whether prompts may be cut at all.
        bos: id of the tokenizer's beginning-of-sequence token, if it has one.

    Raises:
        BadRowError: the response leaves no room for a prompt, or the prompt is too long and may not be cut.
    """
    response = max(map(len, example.responses))
    room = max_length - response
    if len(example.prompt) <= room:
        return example
    if room < 2:
        raise BadRowError(NO_ROOM, f"{response} tokens, max_length {max_length}")
    if not cut_prompt:
        raise BadRowError("the prompt is too long", f"{len(example.prompt)} tokens, room for {room} of {max_length}")
    return replace(example, prompt=cut_left(example.prompt, room, bos), truncated=len(example.prompt) - room)


def cut_left(prompt: list[int], room: int, bos: int | None) -> list[int]:
    """Return the last `room` ids of a prompt, its first BOS token among them."""
    if len(prompt) <= room:
        return prompt
    head = prompt[:1] if prompt[0] == bos else []
    return head + prompt[len(prompt) - room + len(head) :]


def _encode(prompt: Text, responses: Sequence[Text | None], tokenizer: Any) -> list[list[int]]:
    """Return the ids of a prompt with each of some responses, or without one for None."""
    texts = [
        _rendered(prompt, text, tokenizer)
        if isinstance(prompt, list) or isinstance(text, list)
        else prompt + (text or "")
        for text in responses
    ]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise BadRowError("the text is no valid Unicode", str(error)[:200]) from error
    # a chat template has put special tokens in; in plain text, those that are spelled out stay text
    is_chat = isinstance(prompt, list) or isinstance(responses[-1], list)
    if not tokenizer.is_fast:
        return tokenizer(texts, add_special_tokens=not is_chat, split_special_tokens=not is_chat)["input_ids"]
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = not is_chat
    # ids alone: without the places in the text, which transformers asks for as well, a quarter faster
    return [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=not is_chat)]


def _rendered(prompt: Text, response: Text | None, tokenizer: Any) -> str:
    messages = _as_messages(prompt, "user") + (_as_messages(response, "assistant") if response else [])
    check_special(messages, tokenizer)
    return render(messages, tokenizer, open_turn=response is None)


def _part(
    prompt: Text, response: Text, whole: list[int], seam: int, tokenizer: Any, turns: Turns
) -> tuple[list[int], list[bool] | None]:
    """Return the ids of a response, closed, and which of them are scored."""
    if isinstance(response, str) or len(response) == 1:
        return _close(whole[seam:], tokenizer), None
    found = _token_spans(_as_messages(prompt, "user"), response, tokenizer, turns)
    last = max(found[-1][0], seam)
    ids = whole[seam:last] + _close(whole[last:], tokenizer)
    scored = [False] * len(ids)
    for start, end in [*found[:-1], (last, seam + len(ids))]:
        for i in range(max(start - seam, 0), end - seam):
            scored[i] = True
    return ids, scored


def _token_spans(prompt: list[Message], response: list[Message], tokenizer: Any, turns: Turns) -> list[tuple[int, int]]:
    """Return start and end of the assistant's messages in the ids of a chat; a token over a seam follows it."""
    if not tokenizer.is_fast:
        raise UserError("a response has several messages: take a fast tokenizer, which can tell which tokens are whose")
    numbers = [len(prompt) + i for i, message in enumerate(response) if message["role"] == "assistant"]
    messages, wanted = prompt + response, numbers[-1:] if turns == "last" else numbers
    whole = render(messages, tokenizer)
    offsets = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ends = [end for _, end in offsets]
    return [
        (bisect_right(ends, start), bisect_right(ends, end)) for start, end in spans(messages, wanted, whole, tokenizer)
    ]


def _up_to_last_turn(response: Text) -> Text:
    """Return a response without the messages after the last one of the assistant."""
    if isinstance(response, str) or len(response) == 1:
        return response
    last = max((i for i, message in enumerate(response) if message["role"] == "assistant"), default=None)
    if last is None:
        raise BadRowError("a response has no message of the assistant")
    return response[: last + 1]


def _as_messages(text: Text, role: str) -> list[Message]:
    return text if isinstance(text, list) else [{"role": role, "content": text}]


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    most = min(len(one), len(other))
    return most if one[:most] == other[:most] else next(i for i in range(most) if one[i] != other[i])


def _close(response: list[int], tokenizer: Any) -> list[int]:
    return response if tokenizer.eos_token_id in response else [*response, tokenizer.eos_token_id]
