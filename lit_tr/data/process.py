"""RowProcessor: record of a source -> tokenized examples that fit, or a bad row with its reason."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from lit_tr.data.chat import strings
from lit_tr.data.example import Example
from lit_tr.data.formats.conversion import Conversion
from lit_tr.data.rows.source import Record
from lit_tr.data.tokenization import NO_ROOM, TokenizedExample, Turns, is_chat, tokenize, truncate_left
from lit_tr.data.truncation import drop_messages, truncate_responses
from lit_tr.errors import BadRowError, UserError

TOKEN_CHARACTERS = 100
"""A response of more characters a token is refused before it is tokenized; text has 4, long lines of one sign 60."""

MOST_CHARACTERS = 1_000_000
"""Of a prompt, and of a response that may be truncated. Tokenizing takes about 1 s and 0.5 GB for so many."""

TOO_LONG = "the prompt is too long"


class Processed(NamedTuple):
    """What became of a record.

    Args:
        examples: its examples.
        unread: the columns of its row that its format does not read.
        made_chat: whether text became chat messages.
    """

    examples: list[TokenizedExample]
    unread: frozenset[str] = frozenset()
    made_chat: bool = False


@dataclass(frozen=True)
class RowProcessor:
    """Turns a record into tokenized examples; it can be pickled, to run in worker processes.

    A prompt and its longer response take `max_length` tokens at most. A prompt of plain text is truncated on the left,
    by tokens, and a first BOS token stays. Of a chat the oldest messages are dropped, as few as it takes: what is left
    begins with the system's message, if there is one, and one of the user, and ends as the whole prompt does.

    A response is not truncated unless `truncate_responses` says so. It then has what the prompt leaves, and half of
    `max_length` at least where the prompt can be truncated to the other half, and it loses its end, with the end token.
    (TRL keeps the first `max_length` tokens of prompt and response, which leaves nothing of a response to a long
    prompt.)

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: most tokens of a prompt and one response.
        truncate_prompts: truncate a prompt that is too long; if False such a row is a bad row.
        truncate_responses: truncate a response that is too long; if False such a row is a bad row.
        turns: score the `last` message of the assistant in each response, or `all` of them.
    """

    tokenizer: Any
    max_length: int = 1024
    truncate_prompts: bool = True
    truncate_responses: bool = False
    turns: Turns = "last"

    def __call__(self, record: Record) -> list[TokenizedExample]:
        """Return the examples of a record alone; see `process`."""
        return self.process(record).examples

    def process(self, record: Record) -> Processed:
        """Return the examples of a record: none where it holds no row, several where its format makes several pairs.

        Raises:
            BadRowError: the row cannot be trained on; where it makes several pairs, one of them cannot.
            UserError: its format is none, or it needs a chat template that the tokenizer has not.
        """
        if isinstance(record.row, BadRowError):
            raise record.row
        if record.row is None:
            return Processed([])
        chat = self.makes_chat(record.conversion)
        try:
            examples, unread = record.conversion.convert(record.row)
            shown = [one.as_messages() if chat else one for one in examples]
            made_chat = any(one is not other for one, other in zip(shown, examples, strict=True))
            return Processed(list(map(self._tokenized, shown)), unread, made_chat)
        except RecursionError as error:
            raise BadRowError("the row is nested too deeply") from error

    def makes_chat(self, conversion: Conversion) -> bool:
        """Return whether text becomes chat messages.

        Raises:
            UserError: it should, and the tokenizer has no chat template.
        """
        if conversion.chat is True and not self.tokenizer.chat_template:
            raise UserError(
                f"chat: true makes messages of text, and the tokenizer of {self.tokenizer.name_or_path} has no chat "
                "template: give chat: false, or a tokenizer that has one"
            )
        return bool(conversion.chat and self.tokenizer.chat_template)

    def _tokenized(self, example: Example) -> TokenizedExample:
        self._check_size(example)
        whole = self._tokenize(example)
        if self._fits(whole, whole.longest):
            return whole
        left = self._truncate_prompt(example, whole)
        if len(left.prompt) >= self.max_length:
            raise BadRowError(TOO_LONG, f"{len(left.prompt)} tokens, max_length {self.max_length}", _all(whole))
        left = replace(left, truncated=len(whole.prompt) - len(left.prompt))
        return truncate_responses(left, self.max_length - len(left.prompt))

    def _tokenize(self, example: Example) -> TokenizedExample:
        return tokenize(example, self.tokenizer, self.turns, None if self.truncate_responses else self.max_length)

    def _fits(self, example: TokenizedExample, most: int) -> bool:
        """Return whether the prompt leaves room for the longer response, or for `most` tokens of it."""
        return len(example.prompt) + min(example.longest, most) <= self.max_length

    def _truncate_prompt(self, example: Example, whole: TokenizedExample) -> TokenizedExample:
        most = self._most(whole)
        room = self.max_length - min(whole.longest, most)
        if len(whole.prompt) <= room:
            return whole
        if room < 2:
            raise BadRowError(NO_ROOM, f"{whole.longest} tokens, max_length {self.max_length}", _all(whole))
        sizes = f"{len(whole.prompt)} tokens, room for {room} of {self.max_length}"
        if not self.truncate_prompts:
            raise BadRowError(TOO_LONG, sizes, _all(whole))
        if not is_chat(example):
            return replace(whole, prompt=truncate_left(whole.prompt, room, self.tokenizer.bos_token_id))
        left = drop_messages(example, self._tokenize, lambda one: self._fits(one, most)) or whole
        if not self._fits(left, most) and not self.truncate_responses:
            raise BadRowError(TOO_LONG, f"{sizes}; its last turn has {len(left.prompt)}", _all(whole))
        return left

    def _most(self, whole: TokenizedExample) -> int:
        """Return how many tokens of a response are sure to stay."""
        if not self.truncate_responses:
            return max(self.max_length, whole.longest)
        return max(self.max_length - len(whole.prompt), self.max_length // 2 if self.truncate_prompts else 0)

    def _check_size(self, example: Example) -> None:
        most = MOST_CHARACTERS if self.truncate_responses else self.max_length * TOKEN_CHARACTERS
        for text in (example.chosen, example.rejected):
            if (characters := _characters(text)) > most:
                raise BadRowError(NO_ROOM, f"{characters} characters")
            if isinstance(text, list) and len(text) > self.max_length:
                raise BadRowError(NO_ROOM, f"{len(text)} messages")
        if (characters := _characters([example.prompt, example.system, example.tools])) > MOST_CHARACTERS:
            raise BadRowError(TOO_LONG, f"{characters} characters, at most {MOST_CHARACTERS}")


def _all(example: TokenizedExample) -> int:
    return len(example.prompt) + example.longest


def _characters(value: Any) -> int:
    return sum(map(len, strings(value)))
