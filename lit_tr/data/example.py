"""Example: a prompt with its responses; and the readers of fields that the formats share."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lit_tr.errors import BadRowError

Message = dict[str, Any]
"""`{"role": str, "content": str}`; what else there is (`tool_calls`, `name`, ...) is for the chat template."""

Text = str | list[Message]
Row = Mapping[str, Any]

LARGEST = 3e38
"""Labels become float32."""


@dataclass(frozen=True)
class Example:
    """A prompt and its responses, as text or as chat messages.

    Args:
        prompt: what both responses answer.
        chosen: the preferred response; None in an unpaired example that is undesirable.
        rejected: the other response; None in an unpaired example that is desirable.
        margin: by how much the chosen one is rated above the rejected one, in the units of the source; 0 where nobody
            says.
        confidence: probability that the label is right, in [0, 1]: that the chosen one is the better one, 1/2 in a tie.
        labels: further labels by name, of the chosen and of the rejected response, for a loss that reads them.
    """

    prompt: Text
    chosen: Text | None
    rejected: Text | None
    margin: float = 0.0
    confidence: float = 1.0
    labels: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.chosen == self.rejected:
            raise BadRowError("chosen and rejected are equal")
        if not abs(self.margin) < LARGEST:
            raise BadRowError("the margin is not a finite number", str(self.margin))
        if not 0 <= self.confidence <= 1:
            raise BadRowError("the confidence is not in [0, 1]", str(self.confidence))
        for name, values in self.labels.items():
            if name in ("margin", "confidence"):
                raise BadRowError(f"labels: {name} is a field of its own")
            if len(values) != 2 or not all(abs(value) < LARGEST for value in values):
                raise BadRowError(f"labels: {name} is not two finite numbers", str(values))


Format = Callable[[Row], Example | list[Example]]


def value_of(row: Row, key: str) -> Any:
    """Return the value of a column.

    Raises:
        BadRowError: there is none, or it is null.
    """
    if row.get(key) is None:
        raise BadRowError(f"no {key!r}")
    return row[key]


def string(row: Row, key: str) -> str:
    """Return a text.

    Raises:
        BadRowError: it is none.
    """
    value = value_of(row, key)
    if not isinstance(value, str):
        raise BadRowError(f"{key!r} is not text", type(value).__name__)
    return value


def response(row: Row, key: str) -> str:
    """Return a text that is not empty.

    Raises:
        BadRowError: it is no text, or nothing but white space.
    """
    value = string(row, key)
    if not value.strip():
        raise BadRowError(f"{key!r} is an empty response")
    return value


def items(row: Row, key: str, kind: type) -> list[Any]:
    """Return a list whose items are all of one type.

    Raises:
        BadRowError: it is no such list.
    """
    value = value_of(row, key)
    if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
        raise BadRowError(f"{key!r} is not a list of {'objects' if kind is dict else 'texts'}", repr(value)[:80])
    return value


def number(value: Any) -> float | None:
    """Return a finite number, or one that is written as text; None where there is none, as in `"N/A"`."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value) if math.isfinite(float(value)) else None
    except (ValueError, OverflowError):
        return None


def messages(row: Row, key: str) -> list[Message]:
    """Return chat messages, a single one in a list of its own.

    A message has a `role`, and as `content` a text or a list of text parts; one with `tool_calls` needs no content.
    Keys without a value are left out, for Arrow gives each message the keys of all others; else nothing is changed.

    Raises:
        BadRowError: a message is otherwise, or the last one is empty.
    """
    value = value_of(row, key)
    found = value if isinstance(value, list) else [value]
    for message in found:
        if not _is_message(message):
            raise BadRowError(f"{key!r} is not a list of messages with 'role' and 'content'", repr(message)[:80])
    if not found or not _says_something(found[-1]):
        raise BadRowError(f"{key!r} is an empty {'prompt' if key in ('prompt', 'conversations') else 'response'}")
    return [_without_nulls(message) for message in found]


def as_chat(prompt: str, chosen: str, rejected: str) -> tuple[list[Message], list[Message], list[Message]]:
    """Return a question and two answers as messages."""
    ask, *answers = (
        [{"role": role, "content": text}]
        for role, text in (("user", prompt), ("assistant", chosen), ("assistant", rejected))
    )
    return ask, answers[0], answers[1]


def _is_message(message: Any) -> bool:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        return False
    content = message.get("content")
    if content is None:
        return bool(message.get("tool_calls")) and isinstance(message["tool_calls"], list)
    if isinstance(content, list):
        return all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in content)
    return isinstance(content, str)


def _says_something(message: Message) -> bool:
    content = message.get("content") or ""
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return bool(text.strip() or message.get("tool_calls"))


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
