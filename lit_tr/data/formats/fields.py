"""Readers of the columns of a row, which the formats share."""

import ast
import json
import math
import re
from collections.abc import Callable
from typing import Any

from lit_tr.data.example import Example, Message, Row, Text, message
from lit_tr.errors import BadRowError

SHAREGPT_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "function_call": "assistant",
    "observation": "tool",
    "tool": "tool",
}
TRUTH = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}
SCORES = tuple(
    (form.format("chosen", score), form.format("rejected", score))
    for score in ("score", "rating", "avg_rating", "reward")
    for form in ("{1}_{0}", "{0}_{1}", "{0}-{1}")
)
"""Columns whose difference is the margin, such as `score_chosen` and `score_rejected`."""
WRITTEN_MESSAGES = re.compile(r"""\[\{['"](role|from|content|value)['"]:""")
"""How a list of messages begins that is written as text."""
MEDIA = ("images", "image", "videos", "audios")


def value_of(row: Row, key: str) -> Any:
    """Return the value of a column.

    Raises:
        BadRowError: there is none, or it is null.
    """
    value = row.get(key)
    if value is None:
        raise BadRowError(f"no {key!r}")
    return value


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
    """Return a list whose items are all of one type, or null.

    Raises:
        BadRowError: it is no such list.
    """
    value = value_of(row, key)
    if not isinstance(value, list) or not all(item is None or isinstance(item, kind) for item in value):
        raise BadRowError(f"{key!r} is not a list of {'objects' if kind is dict else 'texts'}", repr(value)[:80])
    return value


def parsed(row: Row, key: str, kind: type) -> Any:
    """Return a list or an object, or one that is written as JSON.

    Raises:
        BadRowError: it is neither.
    """
    value = value_of(row, key)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise BadRowError(f"{key!r} is not JSON", str(error)[:80]) from error
    if not isinstance(value, kind):
        raise BadRowError(f"{key!r} is not {'an object' if kind is dict else 'a list'}", repr(value)[:80])
    return value


def number(value: Any) -> float | None:
    """Return a finite number, or one that is written as text; None where there is none, as in `"N/A"`."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return float(value) if math.isfinite(float(value)) else None
    except (ValueError, OverflowError):
        return None


def truth(row: Row, key: str) -> bool:
    """Return a label that is true or false, 1 or 0, or one of these written as text.

    Raises:
        BadRowError: it is none.
    """
    value = value_of(row, key)
    found = None
    if isinstance(value, str):
        found = TRUTH.get(value.strip().lower())
    elif isinstance(value, bool | int | float) and value in (0, 1):
        found = bool(value)
    if found is None:
        raise BadRowError(f"{key!r} is not true or false", repr(value)[:80])
    return found


def text_or_messages(row: Row, key: str, kind: str) -> Text:
    """Return a text, or chat messages; `kind` says whether it is a `prompt` or a `response`.

    Raises:
        BadRowError: it is neither, or empty.
    """
    value = value_of(row, key)
    if isinstance(value, list | dict) or (isinstance(value, str) and WRITTEN_MESSAGES.match(value)):
        return messages(row, key, kind)
    read: Callable[[Row, str], str] = string if kind == "prompt" else response
    return read(row, key)


def messages(row: Row, key: str, kind: str = "response") -> list[Message]:
    """Return chat messages, a single one in a list of its own.

    A message has a `role`, and as `content` a text or a list of text parts, which are joined; one with `tool_calls`
    needs no content. Turns of ShareGPT, with `from` and `value`, become messages, and so do messages written as text,
    as a CSV has them. Keys without a value are left out, for Arrow gives each message the keys of all others; else
    nothing is changed.

    Raises:
        BadRowError: a message is otherwise, or the last one is empty.
    """
    value = value_of(row, key)
    value = _unwritten(value, key) if isinstance(value, str) else value
    found = [_message(one, key) for one in (value if isinstance(value, list) else [value])]
    if not found or not (found[-1].get("content", "").strip() or found[-1].get("tool_calls")):
        raise BadRowError(f"{key!r} is an empty {kind}")
    return found


def example(
    row: Row,
    prompt: Text,
    chosen: Text | None,
    rejected: Text | None,
    margin: float | None = None,
    confidence: float = 1.0,
) -> Example:
    """Return an example with what else a row says: its `system`, `tools`, `chat_template_kwargs`, `subset`, and scores.

    Raises:
        BadRowError: the row has images, or the responses are equal.
    """
    for key in MEDIA:
        if key in row and row[key]:
            raise BadRowError(f"the row has {key!r}, and only text can be trained on")
    system = None if isinstance(prompt, list) and prompt[0]["role"] == "system" else _system(row)
    if system and isinstance(prompt, list):
        prompt, system = [message("system", system), *prompt], None
    if margin is None:
        margin = 0.0 if chosen is None or rejected is None else _margin(row)
    tools = without_nulls(parsed(row, "tools", list)) if row.get("tools") else None
    template = without_nulls(parsed(row, "chat_template_kwargs", dict)) if row.get("chat_template_kwargs") else {}
    subset = str(row["subset"]) if row.get("subset") is not None else None
    return Example(prompt, chosen, rejected, margin, confidence, {}, system, tools or None, template, subset)


def without_nulls(value: Any) -> Any:
    """Return a value without the keys that have none, at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def _system(row: Row) -> str | None:
    for key in ("system", "system_prompt"):
        if row.get(key):
            return string(row, key).strip() or None
    return None


def _margin(row: Row) -> float:
    for chosen, rejected in SCORES:
        if chosen in row and rejected in row:
            one, other = number(row[chosen]), number(row[rejected])
            return 0.0 if one is None or other is None else one - other
    return number(row.get("margin")) or 0.0


def _message(found: Any, key: str) -> Message:
    if isinstance(found, dict) and isinstance(found.get("role"), str):
        content, calls = found.get("content"), found.get("tool_calls")
        if isinstance(content, str):
            return found if len(found) == 2 else without_nulls(found)
        if content is None and calls and isinstance(calls, list):
            return without_nulls(found)
        if isinstance(content, list):
            return {**without_nulls(found), "content": "".join(_part(part, key) for part in content)}
    elif isinstance(found, dict) and found.get("from") is not None:
        return _turn(found, key)
    raise BadRowError(f"{key!r} is not a list of messages with 'role' and 'content'", repr(found)[:80])


def _unwritten(text: str, key: str) -> Any:
    """Return messages that a CSV has as text: JSON, or as Python writes them."""
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, MemoryError):
            continue
    raise BadRowError(f"{key!r} is not a list of messages, nor one that is written as text", text[:80])


def _part(part: Any, key: str) -> str:
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return part["text"]
    raise BadRowError(f"{key!r} has a message with a part that is not text", repr(part)[:80])


def _turn(turn: Message, key: str) -> Message:
    speaker, text = turn["from"], turn.get("value")
    if not isinstance(speaker, str) or not isinstance(text, str):
        raise BadRowError(f"{key!r} is not a list of turns with 'from' and 'value'", repr(turn)[:80])
    if speaker not in SHAREGPT_ROLES:
        raise BadRowError(f"{key!r} has a turn of an unknown speaker", speaker[:80])
    if speaker == "function_call":
        call = parsed({"value": text}, "value", dict)
        return {"role": "assistant", "tool_calls": [{"type": "function", "function": call}]}
    return {"role": SHAREGPT_ROLES[speaker], "content": text}
