"""Example: a prompt with its responses, as text or as chat messages."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lit_tr.errors import BadRowError

Message = dict[str, Any]
"""`{"role": str, "content": str}`; what else there is (`tool_calls`, `name`, ...) is for the chat template."""

Text = str | list[Message]
Row = Mapping[str, Any]

LARGEST = 3e38
"""Labels become float32."""

HH_TURN = re.compile(r"(?:^\s*|\n\n)(Human|Assistant):")
HELPSTEER_TURN = re.compile(r"<extra_id_1>(User|Assistant)\n")
SPEAKERS = {"Human": "user", "User": "user", "Assistant": "assistant"}


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
        system: a system prompt that is not in the prompt: the first message of a chat, and in plain text what stands
            before the prompt, with a blank line between them.
        tools: the tools that the chat template shows to the model, as JSON schemas.
        template: further arguments of the chat template.
        subset: which part of the rows it belongs to; accuracies are printed for each.
    """

    prompt: Text
    chosen: Text | None
    rejected: Text | None
    margin: float = 0.0
    confidence: float = 1.0
    labels: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    system: str | None = None
    tools: list[Any] | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    subset: str | None = None

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

    def as_messages(self) -> "Example":
        r"""Return the example as chat messages, itself if it is one of messages already.

        The content of a message is text without the white space around it. A prompt that is written as a dialogue
        becomes its turns: `"\n\nHuman: ...\n\nAssistant:"` (Anthropic HH, Nectar), or turns that begin with
        `<extra_id_1>` (HelpSteer2). Turns of one speaker that follow each other become one message.

        Raises:
            BadRowError: the responses are equal but for the white space around them.
        """
        parts = (self.prompt, self.chosen, self.rejected)
        if self.system is None and not any(isinstance(part, str) for part in parts):
            return self
        is_hh = isinstance(self.prompt, str) and HH_TURN.match(self.prompt) is not None
        prompt = _turns(self.prompt) if isinstance(self.prompt, str) else self.prompt
        if self.system is not None:
            prompt = [message("system", self.system), *prompt]
        chosen, rejected = (_answer(part, is_hh) for part in parts[1:])
        return replace(self, prompt=prompt, chosen=chosen, rejected=rejected, system=None)


Format = Callable[[Row], Example | list[Example]]


def message(role: str, text: str) -> Message:
    """Return text as a message of a chat, without the white space around it."""
    return {"role": role, "content": text.strip()}


def _answer(response: Text | None, is_hh: bool) -> list[Message] | None:
    if not isinstance(response, str):
        return response
    turns = response.split("\n\nAssistant:") if is_hh else [response]
    return [message("assistant", "\n\n".join(turn.strip() for turn in turns if turn.strip()))]


def _turns(prompt: str) -> list[Message]:
    """Return the turns of a prompt that is written as a dialogue, and else the prompt as one message of the user."""
    head, *hh = HH_TURN.split(prompt)
    if hh and not head and hh[0] == "Human" and hh[-2] == "Assistant" and not hh[-1].strip():
        return _merged(hh[:-2])
    first, *further = HELPSTEER_TURN.split(prompt)
    if further and further[-2] == "User":
        return _merged(["User", first, *further])
    return [message("user", prompt)]


def _merged(pieces: list[str]) -> list[Message]:
    """Return `[speaker, text, speaker, text, ...]` as messages, those of one speaker joined."""
    found: list[Message] = []
    for speaker, text in zip(pieces[::2], pieces[1::2], strict=True):
        one = message(SPEAKERS[speaker], text)
        if found and found[-1]["role"] == one["role"]:
            one = message(one["role"], f"{found.pop()['content']}\n\n{one['content']}")
        found.append(one)
    return found
