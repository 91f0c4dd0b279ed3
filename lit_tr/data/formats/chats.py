"""Whole chats: where the prompt ends and the response begins."""

from lit_tr.data.example import Message
from lit_tr.errors import BadRowError

ANSWERS = ("assistant", "tool")
"""Who speaks first in a response."""


def begins_with_an_answer(response: list[Message]) -> bool:
    """Return whether a response is one, and not a whole chat."""
    return response[0]["role"] in ANSWERS


def split(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], list[Message], list[Message]]:
    """Return the first messages that two whole chats share, and what follows in each.

    Each response keeps one message or more, and the prompt has one besides those of the system.

    Raises:
        BadRowError: they share no prompt, or do not go on with the assistant.
    """
    shared, most = 0, min(len(chosen), len(rejected)) - 1
    while shared < most and chosen[shared] == rejected[shared]:
        shared += 1
    prompt, responses = chosen[:shared], (chosen[shared:], rejected[shared:])
    if not without_system(prompt):
        raise BadRowError("chosen and rejected do not share a prompt")
    for response in responses:
        if not begins_with_an_answer(response):
            raise BadRowError("a response does not begin with the assistant", str(response[0]["role"])[:80])
    return prompt, *responses


def split_last(chat: list[Message]) -> tuple[list[Message], list[Message]]:
    """Return what stands before the last message of the assistant, and this message.

    Raises:
        BadRowError: there is no such message, or nothing but the system's before it.
    """
    last = max((i for i, message in enumerate(chat) if message["role"] == "assistant"), default=None)
    if last is None:
        raise BadRowError("the chat has no message of the assistant")
    if not without_system(chat[:last]):
        raise BadRowError("the chat has no prompt before the assistant")
    return chat[:last], [chat[last]]


def whole(prompt: list[Message], response: list[Message]) -> list[Message]:
    """Return prompt and response as one chat, also where the response begins with the prompt already.

    Raises:
        BadRowError: the response is a chat that begins otherwise.
    """
    if begins_with_an_answer(response):
        return prompt + response
    asked, chat = without_system(prompt), without_system(response)
    if chat[: len(asked)] != asked or len(chat) == len(asked):
        raise BadRowError("a response does not begin with the assistant", str(response[0]["role"])[:80])
    systems = prompt[: len(prompt) - len(asked)] or response[: len(response) - len(chat)]
    return systems + chat


def without_system(chat: list[Message]) -> list[Message]:
    """Return a chat without the system's messages at its start."""
    first = next((i for i, message in enumerate(chat) if message["role"] != "system"), len(chat))
    return chat[first:]
