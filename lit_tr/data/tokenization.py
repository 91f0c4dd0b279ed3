"""Example -> token ids, the prompt shared by both responses."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor

from lit_tr.data.chat import ChatTemplate
from lit_tr.data.example import Example, Message
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
        subset: which part of the rows it belongs to.
        truncated: how many tokens of the prompt were taken off.
        responses_truncated: how many were taken off the chosen and off the rejected response.
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
    subset: str | None = field(default=None, kw_only=True)
    truncated: int = field(default=0, compare=False)
    responses_truncated: tuple[int, int] = field(default=(0, 0), compare=False)
    ahead: "Ahead | None" = field(default=None, compare=False)

    @property
    def responses(self) -> list[list[int]]:
        """The responses that there are, chosen first."""
        return [ids for ids in (self.chosen, self.rejected) if ids is not None]

    @property
    def masked(self) -> list[tuple[list[int], list[bool] | None]]:
        """The responses that there are, chosen first, each with which of its ids are scored."""
        both = (self.chosen, self.chosen_scored), (self.rejected, self.rejected_scored)
        return [(ids, scored) for ids, scored in both if ids is not None]

    @property
    def longest(self) -> int:
        """Tokens of the longer response."""
        return max(map(len, self.responses))


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
    end-of-sequence token closes a response of plain text unless the tokenizer has put one in, and one of a chat where
    the chat template writes no special tokens, which end a turn or begin the next one. Special tokens written out in
    plain text stay text; a chat message that spells one is refused.

    Of a response of several messages only those of the assistant are scored, and the others are context. Messages
    after the last one of the assistant are left out. The assistant's earlier turns in a prompt are never scored: both
    responses share them, and what they add to a difference of log-probs is 0.

    Args:
        example: prompt and responses; a chat where one of them is messages, else plain text.
        tokenizer: a Hugging Face tokenizer; for messages it must have a chat template.
        turns: score the `last` message of the assistant in each response, or `all` of them.
        max_length: a response of more tokens is refused before its turns are looked for.

    Raises:
        BadRowError: the example cannot be tokenized.
        UserError: the rows are chat messages, and the tokenizer has no chat template; or a response has several
            messages, and the tokenizer is a slow one that cannot tell which tokens are whose.
    """
    template = None
    if is_chat(example):
        example = example.as_messages()
        template = ChatTemplate(tokenizer, example.tools or None, example.template)
    pair = [text if text is None else _up_to_last_turn(text) for text in (example.chosen, example.rejected)]
    if pair[0] == pair[1]:
        raise BadRowError("chosen and rejected are equal")
    responses = [text for text in pair if text is not None]
    texts = _rendered(example.prompt, responses, template) if template else _joined(example, responses)
    prompt, *wholes = _encode(texts, tokenizer, chat=template is not None)
    seam = _seam(prompt, wholes, max_length, example.prompt)
    eos = tokenizer.eos_token_id
    parts = [_closed(whole[seam:], text, eos, template) for whole, text in zip(wholes, texts[1:], strict=True)]
    if len(parts) == 2 and parts[0] == parts[1]:
        raise BadRowError("chosen and rejected are equal", "as tokens")
    masks = [
        _scored(template, example.prompt, response, text, turns, seam, len(ids)) if template else None
        for response, text, ids in zip(responses, texts[1:], parts, strict=True)
    ]
    ids, scored = iter(parts), iter(masks)
    return TokenizedExample(
        prompt[:seam],
        None if pair[0] is None else next(ids),
        None if pair[1] is None else next(ids),
        example.margin,
        example.confidence,
        None if pair[0] is None else next(scored),
        None if pair[1] is None else next(scored),
        example.labels,
        subset=example.subset,
    )


def tokenize_prompt(example: Example, tokenizer: Any) -> list[int]:
    """Return the ids of the prompt alone, for a response to be generated; its responses are not read.

    Raises:
        BadRowError: the prompt cannot be tokenized.
        UserError: it is chat messages, and the tokenizer has no chat template.
    """
    if not is_chat(example):
        return _encode(_joined(example, []), tokenizer, chat=False)[0]
    example = example.as_messages()
    template = ChatTemplate(tokenizer, example.tools or None, example.template)
    assert isinstance(example.prompt, list)
    return _encode(_rendered(example.prompt, [], template), tokenizer, chat=True)[0]


def is_chat(example: Example) -> bool:
    """Return whether prompt or responses are chat messages."""
    return any(isinstance(text, list) for text in (example.prompt, example.chosen, example.rejected))


def truncate_left(prompt: list[int], room: int, bos: int | None) -> list[int]:
    """Return the last `room` ids of a prompt, its first BOS token among them."""
    if len(prompt) <= room:
        return prompt
    head = prompt[:1] if prompt[0] == bos else []
    return head + prompt[len(prompt) - room + len(head) :]


def _joined(example: Example, responses: list[Any]) -> list[str]:
    """Return the text of the prompt alone, and with each of some responses."""
    prompt = f"{example.system}\n\n{example.prompt}" if example.system else example.prompt
    return [prompt, *(prompt + text for text in responses)]


def _rendered(prompt: Any, responses: list[Any], template: ChatTemplate) -> list[str]:
    template.check(sum(responses, prompt))
    texts = [template.render(prompt, open_turn=True), *(template.render(prompt + messages) for messages in responses)]
    for messages, text in zip(responses, texts[1:], strict=True):
        template.check_shown(messages[-1], texts[0], text)
    return texts


def _encode(texts: list[str], tokenizer: Any, chat: bool) -> list[list[int]]:
    """Return the ids of texts; a chat template has put special tokens in, those in plain text stay text."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise BadRowError("the text is no valid Unicode", str(error)[:200]) from error
    if not tokenizer.is_fast:
        return tokenizer(texts, add_special_tokens=not chat, split_special_tokens=not chat)["input_ids"]
    backend = tokenizer.backend_tokenizer
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = not chat
    # ids alone: without the offsets in the text, which transformers asks for as well, a quarter faster
    return [found.ids for found in backend.encode_batch_fast(texts, add_special_tokens=not chat)]


def _seam(prompt: list[int], wholes: list[list[int]], max_length: int | None, shown: Any) -> int:
    """Return how many tokens the prompt alone and the prompt with each response begin with in common."""
    seam = min(_common_prefix(prompt, whole) for whole in wholes)
    if seam == 0:
        raise BadRowError("the prompt has no tokens of its own", repr(shown)[-80:])
    longest = max(map(len, wholes)) - seam
    if max_length is not None and longest > max_length:
        raise BadRowError(NO_ROOM, f"{longest} tokens, max_length {max_length}", seam + longest)
    return seam


def _closed(response: list[int], text: str, eos: int, template: ChatTemplate | None) -> list[int]:
    is_closed = eos in response or (template is not None and template.ends_turns(text))
    return response if is_closed else [*response, eos]


def _scored(
    template: ChatTemplate, prompt: Any, response: Any, text: str, turns: Turns, seam: int, length: int
) -> list[bool] | None:
    """Return which of the `length` ids of a response are scored; None if they all are."""
    if len(response) == 1:
        return None
    found = _token_spans(prompt, response, text, template, turns)
    scored = [False] * length
    for start, end in [*found[:-1], (found[-1][0], seam + length)]:
        for i in range(max(start - seam, 0), end - seam):
            scored[i] = True
    return scored


def _token_spans(
    prompt: list[Message], response: list[Message], text: str, template: ChatTemplate, turns: Turns
) -> list[tuple[int, int]]:
    """Return start and end of the assistant's messages in the ids of a chat; a token over a seam follows it."""
    if not template.tokenizer.is_fast:
        raise UserError("a response has several messages: take a fast tokenizer, which can tell which tokens are whose")
    numbers = [len(prompt) + i for i, message in enumerate(response) if message["role"] == "assistant"]
    wanted = numbers[-1:] if turns == "last" else numbers
    offsets = template.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    ends = [end for _, end in offsets]
    spans = template.spans(prompt + response, wanted, text)
    return [(bisect_right(ends, start), bisect_right(ends, end)) for start, end in spans]


def _up_to_last_turn(response: Any) -> Any:
    """Return a response without the messages after the last one of the assistant."""
    if isinstance(response, str) or len(response) == 1:
        return response
    last = max((i for i, message in enumerate(response) if message["role"] == "assistant"), default=None)
    if last is None:
        raise BadRowError("a response has no message of the assistant")
    return response[: last + 1]


def _common_prefix(one: list[int], other: list[int]) -> int:
    most = min(len(one), len(other))
    return most if one[:most] == other[:most] else next(i for i in range(most) if one[i] != other[i])
