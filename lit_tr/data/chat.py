"""Chat messages -> text by a tokenizer's chat template, and where the messages stand in it."""

from collections.abc import Iterator
from functools import lru_cache
from os.path import commonprefix
from typing import Any

from lit_tr.data.example import Message
from lit_tr.errors import BadRowError, UserError


def render(messages: list[Message], tokenizer: Any, open_turn: bool = False) -> str:
    """Return chat messages as the text that a chat template makes of them.

    Args:
        messages: the messages, given to the template as they are.
        tokenizer: a Hugging Face tokenizer.
        open_turn: end with what stands before a message of the assistant.

    Raises:
        UserError: the tokenizer has no chat template.
        BadRowError: the template refuses the messages.
    """
    if not tokenizer.chat_template:
        raise UserError(
            f"the rows are chat messages, and the tokenizer of {tokenizer.name_or_path} has no chat template"
        )
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=open_turn)
    except Exception as error:  # a template is a program of its own
        raise BadRowError("the chat template refuses the messages", str(error)[:200]) from error
    if any(repr(message["content"]) in text for message in messages if isinstance(message.get("content"), list)):
        raise BadRowError("the chat template takes no lists of parts as content")
    return text


def check_special(messages: list[Message], tokenizer: Any) -> None:
    """Refuse messages that spell a special token: in the template's text it would become that token.

    Raises:
        BadRowError: one does.
    """
    special = special_tokens(tokenizer)
    for text in strings(messages):
        for token in special:
            if token in text:
                raise BadRowError("a message spells a special token", token)


@lru_cache(maxsize=4)
def special_tokens(tokenizer: Any) -> frozenset[str]:
    """Return the special tokens of a tokenizer as they are written."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return frozenset(filter(None, (*added, *tokenizer.all_special_tokens)))


def strings(value: Any) -> Iterator[str]:
    """Yield all texts in messages, those of nested values too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)


def spans(messages: list[Message], turns: list[int], whole: str, tokenizer: Any) -> list[tuple[int, int]]:
    """Return where some messages of the assistant start and end in the text of a chat, in characters.

    A message starts after what the template puts before one of the assistant, and ends with what it puts after it.

    Args:
        messages: all messages.
        turns: numbers of the messages that are looked for.
        whole: the text of all messages.
        tokenizer: a tokenizer with a chat template.

    Raises:
        BadRowError: the template renders earlier messages otherwise when later ones follow, so that none can be found.
    """
    found = []
    for turn in turns:
        before = commonprefix([render(messages[:turn], tokenizer, open_turn=True), whole])
        upto = whole if turn == len(messages) - 1 else render(messages[: turn + 1], tokenizer)
        if not (before.startswith(render(messages[:turn], tokenizer)) and whole.startswith(upto)):
            raise BadRowError("the chat template changes earlier messages, so a turn cannot be found")
        found.append((len(before), len(upto)))
    return found
