"""Formats of preference rows: raw row -> Example, one function a format.

A format is any function from a row (a dict) to an `Example`; your own is named by its import path. A row that does not
fit raises `BadRowError`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lit_tr.errors import BadRowError, UserError

Message = dict[str, str]
Text = str | list[Message]
Row = Mapping[str, Any]

HH_TURN = "\n\nAssistant:"
KNOWN_COLUMNS = (("conversations", "chosen", "rejected"), ("prompt", "completion", "label"), ("chosen", "rejected"))
SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


@dataclass(frozen=True)
class Example:
    """A prompt and its responses, as text or as chat messages.

    Args:
        prompt: what both responses answer.
        chosen: the preferred response; None in an unpaired example that is undesirable.
        rejected: the other response; None in an unpaired example that is desirable.
    """

    prompt: Text
    chosen: Text | None
    rejected: Text | None

    def __post_init__(self) -> None:
        if self.chosen == self.rejected:
            raise BadRowError("chosen and rejected are equal")


Format = Callable[[Row], Example]


def explicit_prompt(row: Row) -> Example:
    """`{"prompt": str, "chosen": str, "rejected": str}`."""
    return Example(_string(row, "prompt"), _response(row, "chosen"), _response(row, "rejected"))


def implicit_prompt(row: Row) -> Example:
    r"""`{"chosen": dialogue, "rejected": dialogue}`, as Anthropic HH has them.

    The prompt is everything up to and with the last `"\n\nAssistant:"`, and must be the same in both.
    """
    (prompt, chosen), (other, rejected) = (_split_dialogue(row, key) for key in ("chosen", "rejected"))
    if prompt != other:
        raise BadRowError("chosen and rejected do not share a prompt")
    return Example(prompt, chosen, rejected)


def chat(row: Row) -> Example:
    """`{"prompt": messages, "chosen": messages, "rejected": messages}`, messages as `{"role": str, "content": str}`."""
    return Example(_messages(row, "prompt"), _messages(row, "chosen"), _messages(row, "rejected"))


def chat_implicit(row: Row) -> Example:
    """`{"chosen": messages, "rejected": messages}`: whole chats that differ in the last message alone."""
    chosen, rejected = _messages(row, "chosen"), _messages(row, "rejected")
    if chosen[:-1] != rejected[:-1] or not chosen[:-1]:
        raise BadRowError("chosen and rejected do not share a prompt")
    return Example(chosen[:-1], chosen[-1:], rejected[-1:])


def sharegpt(row: Row) -> Example:
    """`{"conversations": [turn, ...], "chosen": turn, "rejected": turn}`: a turn is `{"from": str, "value": str}`."""
    prompt, chosen, rejected = (_turns(row, key) for key in ("conversations", "chosen", "rejected"))
    return Example(prompt, chosen, rejected)


def unpaired(row: Row) -> Example:
    """`{"prompt": str, "completion": str, "label": bool}`, or prompt and completion as messages; for KTO."""
    as_chat = isinstance(row.get("prompt"), list)
    prompt = _messages(row, "prompt") if as_chat else _string(row, "prompt")
    completion = _messages(row, "completion") if as_chat else _response(row, "completion")
    label = row.get("label")
    if not isinstance(label, bool):
        raise BadRowError("'label' is not true or false", repr(label))
    return Example(prompt, completion, None) if label else Example(prompt, None, completion)


def detect(row: Row) -> Format:
    """Return the format of a row by its keys and their types.

    Raises:
        BadRowError: a format has these keys, and the row lacks a value.
        UserError: no format has these keys.
    """
    keys = {key for key, value in row.items() if value is not None}
    if {"conversations", "chosen", "rejected"} <= keys:
        return sharegpt
    if {"prompt", "completion", "label"} <= keys:
        return unpaired
    if {"chosen", "rejected"} <= keys:
        if isinstance(row["chosen"], list):
            return chat if isinstance(row.get("prompt"), list) else chat_implicit
        return explicit_prompt if "prompt" in keys else implicit_prompt
    for columns in KNOWN_COLUMNS:
        for column in columns:
            if set(columns) <= row.keys() and column not in keys:
                raise BadRowError(f"no {column!r}")
    raise UserError(
        f"unknown format: the keys are {sorted(row)}; known are prompt+chosen+rejected, chosen+rejected, "
        "conversations+chosen+rejected, prompt+completion+label (or name your own function as data.format)"
    )


def _value(row: Row, key: str) -> Any:
    if row.get(key) is None:
        raise BadRowError(f"no {key!r}")
    return row[key]


def _string(row: Row, key: str) -> str:
    value = _value(row, key)
    if not isinstance(value, str):
        raise BadRowError(f"{key!r} is not text", type(value).__name__)
    return value


def _response(row: Row, key: str) -> str:
    value = _string(row, key)
    if not value.strip():
        raise BadRowError(f"{key!r} is an empty response")
    return value


def _split_dialogue(row: Row, key: str) -> tuple[str, str]:
    dialogue = _string(row, key)
    before, turn, response = dialogue.rpartition(HH_TURN)
    if not turn:
        raise BadRowError(f"{key!r} has no {HH_TURN!r}, so its prompt cannot be found")
    if not response.strip():
        raise BadRowError(f"{key!r} is an empty response")
    return before + turn, response


def _messages(row: Row, key: str, role: str = "role", content: str = "content") -> list[Message]:
    value = _value(row, key)
    messages = value if isinstance(value, list) else [value]
    for message in messages:
        if not (
            isinstance(message, dict) and isinstance(message.get(role), str) and isinstance(message.get(content), str)
        ):
            raise BadRowError(f"{key!r} is not a list of messages with {role!r} and {content!r}", repr(message)[:80])
    if not messages or not messages[-1][content].strip():
        raise BadRowError(f"{key!r} is an empty {'prompt' if key in ('prompt', 'conversations') else 'response'}")
    return messages


def _turns(row: Row, key: str) -> list[Message]:
    turns = _messages(row, key, "from", "value")
    unknown = {turn["from"] for turn in turns} - SHAREGPT_ROLES.keys()
    if unknown:
        raise BadRowError(f"{key!r} has a turn of an unknown speaker", ", ".join(sorted(unknown)))
    return [{"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]} for turn in turns]
