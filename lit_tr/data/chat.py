"""Chat messages -> text by a tokenizer's chat template, and where the messages stand in it."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from os.path import commonprefix
from typing import Any

from lit_tr.data.example import Message
from lit_tr.errors import BadRowError, UserError


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer, with what an example hands to it beside messages.

    Args:
        tokenizer: a Hugging Face tokenizer.
        tools: descriptions of the tools that the assistant may call.
        variables: further variables of the template, by name.

    Raises:
        UserError: the tokenizer has no chat template.
    """

    tokenizer: Any
    tools: list[Any] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.tokenizer.chat_template:
            raise UserError(
                f"the rows are chat messages, and the tokenizer of {self.tokenizer.name_or_path} has no chat template"
            )

    def check(self, messages: list[Message]) -> None:
        """Refuse messages, tools or variables that spell a special token: the text would have it as that token.

        Raises:
            BadRowError: one does.
        """
        search = special_tokens(self.tokenizer).search
        for text in strings([messages, self.tools, dict(self.variables)]):
            if found := search(text):
                raise BadRowError("a message spells a special token", found[0])

    def render(self, messages: list[Message], open_turn: bool = False) -> str:
        """Return chat messages as the text that the template makes of them.

        Args:
            messages: the messages, given to the template as they are.
            open_turn: end with what stands before a message of the assistant.

        Raises:
            BadRowError: the template refuses the messages.
        """
        try:
            text = self.tokenizer.apply_chat_template(
                messages, tools=self.tools, tokenize=False, add_generation_prompt=open_turn, **self.variables
            )
        except Exception as error:  # a template is a program of its own
            raise BadRowError("the chat template refuses the messages", str(error)[:200]) from error
        if any(repr(message["content"]) in text for message in messages if isinstance(message.get("content"), list)):
            raise BadRowError("the chat template takes no lists of parts as content")
        return text

    def check_shown(self, message: Message, prompt: str, text: str) -> None:
        """Refuse a message that the template leaves out: those of some models know no tools, or no content but parts.

        Args:
            message: the last message of a response.
            prompt: the text of the prompt.
            text: the text of the whole chat.

        Raises:
            BadRowError: the last word of its content, or the name of a tool that it calls, is not in its text.
        """
        content, calls = message.get("content"), message.get("tool_calls")
        words = content.rsplit(None, 1)[-1:] if isinstance(content, str) else []
        called = [call.get("function") for call in calls or [] if isinstance(call, dict)]
        names = [function.get("name") for function in called if isinstance(function, dict)]
        if not all(text.count(str(word)) > prompt.count(str(word)) for word in words + names):
            raise BadRowError("the chat template leaves out a response", f"{(words + names)[-1]!r:.80}")

    def ends_turns(self, text: str) -> bool:
        """Return whether the template says where a turn ends: by a special token behind it, or before the next one.

        So it is where it has put any special token into a text, but for one at the start, which is BOS.
        """
        return special_tokens(self.tokenizer).search(text, 1) is not None

    def spans(self, messages: list[Message], turns: list[int], whole: str) -> list[tuple[int, int]]:
        """Return where some messages of the assistant start and end in the text of a chat, in characters.

        A message starts after what the template puts before one of the assistant, and ends with what it puts after it.

        Args:
            messages: all messages.
            turns: numbers of the messages that are looked for.
            whole: the text of all messages.

        Raises:
            BadRowError: the template renders earlier messages otherwise when later ones follow, so that none can be
                found.
        """
        found = []
        for turn in turns:
            before = commonprefix([self.render(messages[:turn], open_turn=True), whole])
            upto = whole if turn == len(messages) - 1 else self.render(messages[: turn + 1])
            if not (before.startswith(self.render(messages[:turn])) and whole.startswith(upto)):
                raise BadRowError("the chat template changes earlier messages, so a turn cannot be found")
            found.append((len(before), len(upto)))
        return found


@lru_cache(maxsize=4)
def special_tokens(tokenizer: Any) -> re.Pattern[str]:
    """Return an expression for the special tokens of a tokenizer, as they are written; a longer one goes first."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    written = sorted({*added, *tokenizer.all_special_tokens} - {""}, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, written)) or "(?!)")


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
