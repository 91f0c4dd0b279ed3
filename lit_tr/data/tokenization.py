"""Example -> token ids, the prompt shared by both responses."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError

from lit_tr.data.formats import Example, Text
from lit_tr.errors import BadRowError, UserError


@dataclass(frozen=True)
class TokenizedExample:
    """Token ids of an example.

    Args:
        prompt: ids that the model is given, the same for both responses.
        chosen: ids of the preferred response, its end-of-sequence token with them; None where there is no such
            response.
        rejected: the same of the other response.
    """

    prompt: list[int]
    chosen: list[int] | None
    rejected: list[int] | None

    @property
    def responses(self) -> list[list[int]]:
        """The responses that there are, chosen first."""
        return [ids for ids in (self.chosen, self.rejected) if ids is not None]


def tokenize(example: Example, tokenizer: Any) -> TokenizedExample:
    r"""Tokenize prompt and response together and part them where the tokens of the prompt end.

    A token that runs over the seam (`"\n"` and `"\n"` becoming one token) belongs to the response, in both
    responses: so no text is lost, and both see the very same prompt. TRL parts them at the same place. An
    end-of-sequence token closes a response unless the tokenizer or its chat template has put one in already. Special
    tokens written out in plain text stay text.

    Args:
        example: prompt and responses, as text or as chat messages.
        tokenizer: a Hugging Face tokenizer; for messages it must have a chat template.
    """
    prompt = _encode(example.prompt, None, tokenizer)
    texts = (example.chosen, example.rejected)
    wholes = [text if text is None else _encode(example.prompt, text, tokenizer) for text in texts]
    seam = min(_common_prefix(prompt, whole) for whole in wholes if whole is not None)
    if seam == 0:
        raise BadRowError("the prompt has no tokens of its own", repr(example.prompt)[-80:])
    responses = [whole if whole is None else _close(whole[seam:], tokenizer) for whole in wholes]
    return TokenizedExample(prompt[:seam], *responses)


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
        raise BadRowError("a response leaves no room for a prompt", f"{response} tokens, max_length {max_length}")
    if not cut_prompt:
        raise BadRowError("the prompt is too long", f"{len(example.prompt)} tokens, room for {room} of {max_length}")
    return TokenizedExample(cut_left(example.prompt, room, bos), example.chosen, example.rejected)


def cut_left(prompt: list[int], room: int, bos: int | None) -> list[int]:
    """Return the last `room` ids of a prompt, its first BOS token among them."""
    if len(prompt) <= room:
        return prompt
    head = prompt[:1] if prompt[0] == bos else []
    return head + prompt[len(prompt) - room + len(head) :]


def _encode(prompt: Text, response: Text | None, tokenizer: Any) -> list[int]:
    if isinstance(prompt, str) and not isinstance(response, list):
        return tokenizer(prompt + (response or ""), split_special_tokens=True)["input_ids"]
    messages = _as_messages(prompt, "user") + (_as_messages(response, "assistant") if response else [])
    if not tokenizer.chat_template:
        raise UserError(
            f"the rows are chat messages, and the tokenizer of {tokenizer.name_or_path} has no chat template"
        )
    try:
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=response is None, return_dict=True)
    except TemplateError as error:
        raise BadRowError("the chat template refuses the messages", str(error)) from error
    return ids["input_ids"]


def _as_messages(text: Text, role: str) -> list[dict[str, str]]:
    return text if isinstance(text, list) else [{"role": role, "content": text}]


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _close(response: list[int], tokenizer: Any) -> list[int]:
    return response if tokenizer.eos_token_id in response else [*response, tokenizer.eos_token_id]
