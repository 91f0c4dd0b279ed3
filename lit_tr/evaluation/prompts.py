"""Prompts of any source of rows, ready for a policy: text or messages, and token ids as in training."""

from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from lit_tr.data.bad_rows import BadRow, BadRows
from lit_tr.data.datamodule import Data
from lit_tr.data.example import Example, Row, Text
from lit_tr.data.formats import Conversion, dialogue, sharegpt_dialogue
from lit_tr.data.formats.prompts import prompt_alone
from lit_tr.data.process import RowProcessor
from lit_tr.data.rows import Objects, Record, Source, as_source
from lit_tr.data.tokenization import TokenizedExample, is_chat, tokenize_prompt, truncate_left
from lit_tr.data.truncation import drop_messages
from lit_tr.errors import BadRowError, UserError, explained

IDS = ("id", "prompt_id", "uid", "question_id", "qid")
"""Columns that may name a prompt."""
ANSWERS = ("reference_answer", "reference", "answer")
"""Columns that may hold an answer to compare with."""
KINDS = ("kind", "qtype")
"""Columns that may say whether a prompt is open-ended or closed-ended."""

DIALOGUES = (dialogue, sharegpt_dialogue)


@dataclass(frozen=True)
class Prompt:
    """What is to be answered.

    Args:
        id: names it: its row's own id, or the row's number.
        shown: text, or chat messages with the system's.
        ids: token ids that the policy is given; empty for a server, which makes its own.
        truncated: whether these are not of all of it, for it was too long.
        own_id: what its row calls it.
        raw: the prompt as its row has it, where that is text.
        tools: tools that the chat template shows.
        template: further arguments of the chat template.
        reference_answer: an answer that came with it.
        chosen: the preferred response of the row.
        rejected: the other response of the row.
        kind: whether it is open-ended or closed-ended, in its row's words.
    """

    id: str
    shown: Text
    ids: list[int] = field(default_factory=list)
    truncated: bool = False
    own_id: str | None = None
    raw: str | None = None
    tools: list[Any] | None = None
    template: Mapping[str, Any] = field(default_factory=dict)
    reference_answer: str | None = None
    chosen: Text | None = None
    rejected: Text | None = None
    kind: str | None = None

    @property
    def content(self) -> str:
        """What makes it this prompt, whichever row it is from."""
        return repr((self.shown, self.tools, dict(self.template)))


@dataclass
class Prompts:
    """The prompts of a source, and what is to be said of the rest.

    Args:
        bad: rows that have none.
        found: the prompts, each one once.
        repeated: rows whose prompt was there already.
    """

    bad: BadRows
    found: list[Prompt] = field(default_factory=list)
    repeated: int = 0

    @property
    def truncated(self) -> int:
        """How many prompts were too long."""
        return sum(one.truncated for one in self.found)


def source_of(data: Source | str | Path) -> Source:
    """Return a source of rows; of a text file each line that is not empty is a prompt.

    Raises:
        UserError: there is no such file.
    """
    if not isinstance(data, str | Path) or Path(data).suffix != ".txt":
        return as_source(data, "test")
    with explained(f"{data}: the prompts cannot be read", OSError, UnicodeDecodeError):
        lines = Path(data).expanduser().read_text().splitlines()
    return Objects([{"prompt": line} for line in lines if line.strip()])


def held_out(config: Mapping[str, Any], checkpoint: str | Path) -> Source | None:
    """Return the validation rows of the run of a checkpoint; None if it has none.

    Args:
        config: the configuration of the run.
        checkpoint: for messages.

    Raises:
        UserError: they cannot be read.
    """
    rows = (config.get("data") or {}).get("val")
    if not rows:
        return None
    made = ArgumentParser(exit_on_error=False)
    made.add_argument("--val", type=Data)
    with explained(f"{checkpoint}: data.val of its run cannot be read; give other rows", ArgumentError):
        return source_of(made.instantiate(made.parse_object({"val": rows})).val)


def read_prompts(source: Source, read: "Reader", most: int | None = None, max_bad_rows: float = 0.01) -> Prompts:
    """Return the prompts of a source. A prompt that several rows have is taken once, from the first.

    Args:
        source: rows of any format, or with a prompt alone.
        read: makes prompts of rows.
        most: stop behind so many prompts; None takes all.
        max_bad_rows: how many rows may be left out: a share below 1, a count from 1 on.

    Raises:
        UserError: there are no prompts, or too many bad rows.
    """
    prompts, seen = Prompts(BadRows(max_bad_rows, option="max_bad_rows")), set[str]()
    for number, record in enumerate(source.records()):
        try:
            made = read(record, number)
        except BadRowError as error:
            prompts.bad.add(1, [BadRow.of(record.location, error)], judge=False)
            continue
        prompts.bad.add(len(made), (), judge=False)
        for one in made:
            prompts.repeated += one.content in seen
            prompts.found += [] if one.content in seen else [one]
            seen.add(one.content)
        if most is not None and len(prompts.found) >= most:
            break
    prompts.bad.add(0, ())
    if not prompts.found:
        raise UserError(f"{source}: there are no prompts in it")
    return replace(prompts, found=_named(prompts.found[:most]))


def _named(prompts: list[Prompt]) -> list[Prompt]:
    """Give the prompts the ids of their rows, if each has one of its own."""
    own = {one.own_id for one in prompts}
    if None in own or len(own) < len(prompts):
        return prompts
    return [replace(one, id=str(one.own_id)) for one in prompts]


@dataclass(frozen=True)
class Reader:
    """Makes prompts of rows.

    Args:
        tokenizer: the policy's; None makes no ids, for a server.
        context: most tokens of a prompt. To the policy a longer one is truncated as in training: a chat by its oldest
            messages, text on the left.
    """

    tokenizer: Any = None
    context: int | None = None

    def __call__(self, record: Record, number: int) -> list[Prompt]:
        """Return the prompts of a record: none where it holds no row, several where its format makes several examples.

        Raises:
            BadRowError: the row has none.
            UserError: the row asks for a chat template, and the tokenizer has none.
        """
        if isinstance(record.row, BadRowError):
            raise record.row
        if record.row is None:
            return []
        row, examples = record.row, _examples(record.conversion, record.row)
        chat = record.conversion.chat is not False
        if self.tokenizer is not None:
            chat = RowProcessor(self.tokenizer).makes_chat(record.conversion)
        names = [f"{number}.{i}" if i else f"{number}" for i in range(len(examples))]
        return [self._prompt(one, row, name, chat) for one, name in zip(examples, names, strict=True)]

    def _prompt(self, given: Example, row: Row, name: str, chat: bool) -> Prompt:
        example = given.as_messages() if chat or is_chat(given) else given
        raw = given.prompt if isinstance(given.prompt, str) else None
        text, (ids, truncated) = example.prompt, self._ids(example)
        if isinstance(text, str) and example.system:
            text = f"{example.system}\n\n{text}"
        answer, kind = answer_and_kind(row)
        own = next((str(row[key]) for key in IDS if isinstance(row.get(key), str | int)), None)
        responses = _response(example.chosen), _response(example.rejected)
        return Prompt(name, text, ids, truncated, own, raw, example.tools, example.template, answer, *responses, kind)

    def _ids(self, example: Example) -> tuple[list[int], bool]:
        """Return the ids of a prompt, and whether it was too long."""
        if self.tokenizer is None:
            return [], False
        whole = ids = tokenize_prompt(example, self.tokenizer)
        if not ids:
            raise BadRowError("the prompt is empty")
        if self.context is None or len(ids) <= self.context:
            return ids, False
        if is_chat(example):
            left = drop_messages(example, self._tokenized, lambda one: len(one.prompt) <= (self.context or 0))
            ids = left.prompt if left else whole
        else:
            ids = truncate_left(ids, self.context, self.tokenizer.bos_token_id)
        if len(ids) > self.context:
            raise BadRowError("the prompt is too long", f"{len(whole)} tokens, room for {self.context}")
        return ids, True

    def _tokenized(self, example: Example) -> TokenizedExample:
        return TokenizedExample(tokenize_prompt(example, self.tokenizer), [], None)


def answer_and_kind(row: Row) -> tuple[str | None, str | None]:
    """Return a row's reference answer, and what it says of its kind; None where it has none."""
    return _text(row, ANSWERS), _text(row, KINDS)


def _text(row: Row, names: Sequence[str]) -> str | None:
    """Return what the first of some columns holds that is text."""
    return next((row[name] for name in names if isinstance(row.get(name), str)), None)


def _examples(convert: Conversion, row: Row) -> list[Example]:
    """Return the examples of a row: those of its format, or its prompt alone.

    A chat that ends with the user is a prompt as a whole, though its earlier answers could be learned.
    """
    alone = replace(convert, format=prompt_alone)
    try:
        if convert.format is None and convert.format_of(row) in DIALOGUES and _is_open(alone, row):
            return alone(row)
        return convert(row)
    except BadRowError:
        if convert.format is not None:
            raise
        return alone(row)


def _is_open(alone: Conversion, row: Row) -> bool:
    """Whether a chat is still to be answered."""
    try:
        return bool(alone(row))
    except BadRowError:
        return False


def _response(response: Text | None) -> Text | None:
    """Return a response as text where it is one message alone; None where there is none."""
    if isinstance(response, list) and len(response) == 1 and isinstance(response[0].get("content"), str):
        return response[0]["content"] or None
    return response or None
