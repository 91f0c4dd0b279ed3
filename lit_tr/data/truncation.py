"""What is taken off examples that are too long: tokens of text, whole messages of chats, ends of responses."""

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace

from lit_tr.data.example import Example, Message
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.errors import BadRowError

SYSTEM_ROLES = ("system", "developer")


def later_starts(prompt: list[Message]) -> tuple[list[Message], list[int]]:
    """Return the messages of the system that a prompt begins with, and where it can begin behind them.

    That is at each message of the user but for the first message: a response still answers what it answered, and
    templates that want a user first are content.
    """
    first = next((i for i, message in enumerate(prompt) if message["role"] not in SYSTEM_ROLES), len(prompt))
    return prompt[:first], [i for i in range(first + 1, len(prompt)) if prompt[i]["role"] == "user"]


def drop_messages(
    example: Example, tokenize: Callable[[Example], TokenizedExample], fits: Callable[[TokenizedExample], bool]
) -> TokenizedExample | None:
    """Drop the oldest messages of a prompt, as few as it takes; the system's stay, and so does the last one.

    Args:
        example: a chat.
        tokenize: returns its tokens with fewer messages.
        fits: whether these are few enough.

    Returns:
        The tokens of what is left, the same as of a row that never had the other messages. Where that does not fit
        either, those of the fewest messages; None where no message can be dropped.
    """
    assert isinstance(example.prompt, list)
    prompt = example.prompt
    system, starts = later_starts(prompt)
    seen: dict[int, TokenizedExample] = {}

    def left(start: int) -> TokenizedExample:
        if start not in seen:
            seen[start] = tokenize(replace(example, prompt=system + prompt[start:]))
        return seen[start]

    at = bisect_left(starts, True, key=lambda start: fits(left(start)))
    return left(starts[min(at, len(starts) - 1)]) if starts else None


def truncate_responses(example: TokenizedExample, room: int) -> TokenizedExample:
    """Return an example with the first `room` tokens of each response; one that is truncated has no end token.

    Raises:
        BadRowError: what is left of both responses is equal, or nothing is left that is scored.
    """
    if example.longest <= room:
        return example
    chosen, rejected = (None if ids is None else ids[:room] for ids in (example.chosen, example.rejected))
    scored = [mask and mask[:room] for mask in (example.chosen_scored, example.rejected_scored)]
    if chosen == rejected:
        raise BadRowError("chosen and rejected are equal", f"in their first {room} tokens")
    if any(mask is not None and not any(mask) for mask in scored):
        raise BadRowError("a response is too long", f"the turn that is scored is not in its first {room} tokens")
    off = tuple(max(len(ids or ()) - room, 0) for ids in (example.chosen, example.rejected))
    return replace(
        example,
        chosen=chosen,
        rejected=rejected,
        chosen_scored=scored[0],
        rejected_scored=scored[1],
        responses_truncated=(off[0], off[1]),
    )
