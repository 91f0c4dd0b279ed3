"""Formats of preference rows: raw row -> Example, or a list of them; one function or small class per format.

A format is any function from a row (a dict) to an `Example` or several; your own is named by its import path. One with
options is a class, named by `class_path` with `init_args`; those of rated and ranked responses are in
`lit_tr.data.formats.rated`. A row that does not fit raises `BadRowError`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from lit_tr.data.example import (
    Example,
    Format,
    Message,
    Row,
    as_chat,
    items,
    messages,
    number,
    response,
    string,
    value_of,
)
from lit_tr.data.formats.rated import CodeUltraFeedback, Ranking, UltraFeedback
from lit_tr.errors import BadRowError, UserError

HH_TURN = "\n\nAssistant:"
HUMAN = "Human:"
SHAREGPT_ROLES = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}


def explicit_prompt(row: Row) -> Example:
    """`{"prompt": str, "chosen": str, "rejected": str}`."""
    return Example(string(row, "prompt"), response(row, "chosen"), response(row, "rejected"))


def implicit_prompt(row: Row) -> Example:
    r"""`{"chosen": dialogue, "rejected": dialogue}`, as Anthropic HH has them.

    The response is what the assistant says after the last turn of the human, in one turn or several; the prompt is
    everything before, and must be the same in both. A response of white space only is kept: some were preferred.
    """
    (prompt, chosen), (other, rejected) = (_split_dialogue(row, key) for key in ("chosen", "rejected"))
    if prompt != other:
        raise BadRowError("chosen and rejected do not share a prompt")
    return Example(prompt, chosen, rejected)


def chat(row: Row) -> Example:
    """`{"prompt": messages, "chosen": messages, "rejected": messages}`, messages as `{"role": str, "content": str}`."""
    return Example(messages(row, "prompt"), messages(row, "chosen"), messages(row, "rejected"))


def chat_implicit(row: Row) -> Example:
    """`{"chosen": messages, "rejected": messages}`: whole chats with the same first messages, which are the prompt.

    Each response keeps one message or more, and the prompt has one besides those of the system.
    """
    chosen, rejected = messages(row, "chosen"), messages(row, "rejected")
    shared, most = 0, min(len(chosen), len(rejected)) - 1
    while shared < most and chosen[shared] == rejected[shared]:
        shared += 1
    prompt = chosen[:shared]
    if all(message["role"] == "system" for message in prompt):
        raise BadRowError("chosen and rejected do not share a prompt")
    return Example(prompt, chosen[shared:], rejected[shared:])


def sharegpt(row: Row) -> Example:
    """`{"conversations": [turn, ...], "chosen": turn, "rejected": turn}`: a turn is `{"from": str, "value": str}`."""
    prompt, chosen, rejected = (_turns(row, key) for key in ("conversations", "chosen", "rejected"))
    return Example(prompt, chosen, rejected)


def unpaired(row: Row) -> Example:
    """`{"prompt": str, "completion": str, "label": bool}`, or prompt and completion as messages; for KTO."""
    is_chat = isinstance(row.get("prompt"), list)
    prompt = messages(row, "prompt") if is_chat else string(row, "prompt")
    completion = messages(row, "completion") if is_chat else response(row, "completion")
    label = row.get("label")
    if not isinstance(label, bool):
        raise BadRowError("'label' is not true or false", repr(label)[:80])
    return Example(prompt, completion, None) if label else Example(prompt, None, completion)


def tldr(row: Row) -> Example:
    """`{"info": {"subreddit", "title", "post"}, "summaries": [{"text"}, {"text"}], "choice": 0 or 1}`.

    The comparisons of `openai/summarize_from_feedback`, with the prompt of Stiennon et al. 2020 (arXiv 2009.01325).
    """
    info, summaries, choice = value_of(row, "info"), items(row, "summaries", dict), value_of(row, "choice")
    if not isinstance(info, dict):
        raise BadRowError("'info' is not an object", type(info).__name__)
    if len(summaries) != 2 or isinstance(choice, bool) or choice not in (0, 1):
        raise BadRowError("'choice' is not the number of one of two summaries", repr(choice)[:80])
    subreddit, title, post = (string(info, key) for key in ("subreddit", "title", "post"))
    first, second = (" " + response(summary, "text").lstrip() for summary in summaries)
    pair = (second, first) if choice else (first, second)
    return Example(f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:", *pair)


@dataclass(frozen=True)
class AlpacaEval:
    """`{"instruction": str, "output_1": str, "output_2": str, "preference": number}`: an annotated comparison.

    The preference is 1 plus the probability that the second output is the better one (AlpacaEval 2), or just 1 or 2; a
    tie is 1.5, or 0. The likelier output is the chosen one, and its probability the confidence.

    Args:
        chat: make messages of instruction and outputs, for a tokenizer with a chat template; False leaves plain text.
    """

    chat: bool = True

    def __call__(self, row: Row) -> Example:
        """Return the pair."""
        texts = string(row, "instruction"), response(row, "output_1"), response(row, "output_2")
        preference = number(value_of(row, "preference"))
        if preference is None or not (preference == 0 or 1 <= preference <= 2):
            raise BadRowError("'preference' is not in [1, 2], nor 0", repr(row["preference"])[:80])
        second = preference - 1 if preference else 0.5
        prompt, one, two = as_chat(*texts) if self.chat else texts
        return (
            Example(prompt, two, one, confidence=second)
            if second > 0.5
            else Example(prompt, one, two, confidence=1 - second)
        )


BY_COLUMNS: tuple[tuple[tuple[str, ...], Format], ...] = (
    (("conversations", "chosen", "rejected"), sharegpt),
    (("prompt", "completion", "label"), unpaired),
    (("chosen", "rejected"), implicit_prompt),
    (("info", "summaries", "choice"), tldr),
    (("instruction", "output_1", "output_2", "preference"), AlpacaEval()),
    (("instruction", "completions"), UltraFeedback()),
    (("instruction", "responses", "annotations"), CodeUltraFeedback()),
    (("prompt", "responses", "ranks"), Ranking()),
    (("prompt", "answers"), Ranking()),
)
"""The format of rows that have these columns; the first that fits. Those with options have their defaults."""


def detect(row: Row) -> Format:
    """Return the format of a row by its keys and their types.

    Raises:
        BadRowError: a format has these keys, and the row lacks a value.
        UserError: no format has these keys.
    """
    if not isinstance(row, Mapping):
        raise BadRowError("the row is not an object with columns", type(row).__name__)
    for columns, format in BY_COLUMNS:
        if all(row.get(column) is not None for column in columns):
            return _of_pairs(row) if format is implicit_prompt else format
    for columns, _ in BY_COLUMNS:
        for column in columns:
            if set(columns) <= row.keys() and row[column] is None:
                raise BadRowError(f"no {column!r}")
    known = ", ".join("+".join(columns) for columns, _ in BY_COLUMNS)
    raise UserError(
        f"unknown format: the keys are {sorted(map(str, row))}; known are prompt+chosen+rejected, {known} "
        "(or name your own function as data.format)"
    )


def _of_pairs(row: Row) -> Format:
    if isinstance(row["chosen"], list):
        return chat if isinstance(row.get("prompt"), list) else chat_implicit
    return implicit_prompt if row.get("prompt") is None else explicit_prompt


def _split_dialogue(row: Row, key: str) -> tuple[str, str]:
    dialogue = string(row, key)
    *before, answer = dialogue.split(HH_TURN)
    if not before:
        raise BadRowError(f"{key!r} has no {HH_TURN!r}, so its prompt cannot be found")
    while len(before) > 1 and HUMAN not in before[-1]:  # the assistant's turns that follow each other
        answer = before.pop() + HH_TURN + answer
    if not answer:
        raise BadRowError(f"{key!r} is an empty response")
    return HH_TURN.join(before) + HH_TURN, answer


def _turns(row: Row, key: str) -> list[Message]:
    value = value_of(row, key)
    turns = value if isinstance(value, list) else [value]
    for turn in turns:
        if not (isinstance(turn, dict) and isinstance(turn.get("from"), str) and isinstance(turn.get("value"), str)):
            raise BadRowError(f"{key!r} is not a list of turns with 'from' and 'value'", repr(turn)[:80])
    unknown = {turn["from"] for turn in turns} - SHAREGPT_ROLES.keys()
    if unknown:
        raise BadRowError(f"{key!r} has a turn of an unknown speaker", ", ".join(sorted(unknown))[:80])
    return messages({key: [{"role": SHAREGPT_ROLES[turn["from"]], "content": turn["value"]} for turn in turns]}, key)
