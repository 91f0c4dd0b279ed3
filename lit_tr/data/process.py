"""RowProcessor: record of a source -> tokenized examples that fit, or a bad row with its reason."""

from dataclasses import dataclass
from typing import Any

from lit_tr.data.chat import strings
from lit_tr.data.example import Example, Text
from lit_tr.data.rows.source import Record
from lit_tr.data.tokenization import NO_ROOM, TokenizedExample, Turns, fit, tokenize
from lit_tr.errors import BadRowError

TOKEN_CHARACTERS = 100
"""A response of more characters a token is refused before it is tokenized; text has 4, long lines of one sign 60."""

PROMPT_CHARACTERS = 1_000_000
"""Tokenizing takes about 1 s and 0.5 GB for so many."""


@dataclass(frozen=True)
class RowProcessor:
    """Turns a record into tokenized examples; it can be pickled, to run in worker processes.

    Args:
        tokenizer: a Hugging Face tokenizer.
        max_length: most tokens of a prompt and one response.
        cut_prompts: cut a prompt that is too long on the left; if False such a row is a bad row.
        turns: score the `last` message of the assistant in each response, or `all` of them.
    """

    tokenizer: Any
    max_length: int = 1024
    truncate_prompts: bool = True
    truncate_responses: bool = False
    turns: Turns = "last"

    def __call__(self, record: Record) -> list[TokenizedExample]:
        """Return the examples of a record: none where it holds no row, several where its format makes several pairs.

        Raises:
            BadRowError: the row cannot be trained on; where it makes several pairs, one of them cannot.
            UserError: its format is none, or it needs a chat template that the tokenizer has not.
        """
        if isinstance(record.row, BadRowError):
            raise record.row
        if record.row is None:
            return []
        try:
            return [self._tokenized(one) for one in record.conversion(record.row)]
        except RecursionError as error:
            raise BadRowError("the row is nested too deeply") from error

    def _tokenized(self, example: Example) -> TokenizedExample:
        self._check_size(example)
        whole = tokenize(example, self.tokenizer, self.turns, self.max_length)
        return fit(whole, self.max_length, self.truncate_prompts, self.tokenizer.bos_token_id)

    def _check_size(self, example: Example) -> None:
        for text in (example.chosen, example.rejected):
            characters, most = _characters(text), self.max_length * TOKEN_CHARACTERS
            if characters > most:
                raise BadRowError(NO_ROOM, f"{characters} characters")
            if isinstance(text, list) and len(text) > self.max_length:
                raise BadRowError(NO_ROOM, f"{len(text)} messages")
        if (characters := _characters(example.prompt)) > PROMPT_CHARACTERS:
            raise BadRowError("the prompt is too long", f"{characters} characters, at most {PROMPT_CHARACTERS}")


def _characters(text: Text | None) -> int:
    return sum(map(len, strings(text)))
