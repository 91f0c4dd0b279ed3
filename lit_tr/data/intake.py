"""Rows -> examples, or entries in the list of bad rows; and examples -> batches."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch

from lit_tr.data.collator import Collator
from lit_tr.data.packing import fill
from lit_tr.data.process import RowProcessor
from lit_tr.data.rows.source import Record
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.errors import BadRowError, UserError


@dataclass
class BadRows:
    """Counts, lists, skips or refuses rows that cannot be trained on.

    Args:
        skip: leave them out; False ends with the first one.
        file: JSON lines file that lists the skipped rows with `where`, `reason` and `detail`; None
            lists them nowhere.
        counts: how many were left out, by reason.
    """

    skip: bool
    file: Path | None = None
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, where: str, error: BadRowError) -> None:
        """Handle a bad row.

        Raises:
            UserError: it ends the run; the message names the row.
        """
        if not self.skip:
            raise UserError(
                f"{where}: {error}; fix the row, or leave such rows out by data.on_bad_row: skip"
            ) from error
        self.counts[error.reason] += 1
        if self.file:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as file:
                file.write(json.dumps({"where": where, "reason": error.reason, "detail": error.detail}) + "\n")


@dataclass(frozen=True)
class Layout:
    """How the examples that are held at one time become batches.

    Args:
        collator: makes a batch of examples.
        batch_size: examples in a batch.
        max_tokens: most packed tokens in a batch, where there is no batch_size.
        by_length: put examples of about the same length into a batch.
    """

    collator: Collator
    batch_size: int | None = None
    max_tokens: int | None = None
    by_length: bool = False

    def check(self, example: TokenizedExample) -> None:
        """Check that an example goes into a batch.

        Raises:
            BadRowError: it has more tokens than a batch may have.
        """
        tokens = self.collator.tokens(example)
        if self.max_tokens and tokens > self.max_tokens:
            raise BadRowError(
                "the row passes max_tokens", f"{tokens} tokens with both responses, max_tokens {self.max_tokens}"
            )

    def plan(self, examples: list[TokenizedExample], draw: torch.Generator | None) -> list[list[int]]:
        """Return the indices of the examples of each batch; the last one may be short of batch_size.

        Args:
            examples: the examples.
            draw: the order is drawn from it; None keeps that of the examples.
        """
        order = list(range(len(examples))) if draw is None else torch.randperm(len(examples), generator=draw).tolist()
        if self.max_tokens:
            sizes = [self.collator.tokens(examples[i]) for i in order]
            return [[order[i] for i in pack] for pack in fill(sizes, self.max_tokens)] if order else []
        size = self.batch_size or 1
        if not self.by_length:
            return [order[i : i + size] for i in range(0, len(order), size)]
        order.sort(key=lambda i: self.collator.tokens(examples[i]))
        batches = [order[i : i + size] for i in range(0, len(order), size)]
        short = [batches.pop()] if len(order) % size else []
        mixed = range(len(batches)) if draw is None else torch.randperm(len(batches), generator=draw).tolist()
        return [batches[i] for i in mixed] + short


@dataclass(frozen=True)
class Intake:
    """What becomes of a row that was read.

    Args:
        process: makes examples of it.
        layout: says which examples go into a batch.
        bad_rows: what is done if it cannot be trained on.
    """

    process: RowProcessor
    layout: Layout
    bad_rows: BadRows

    def __call__(self, record: Record) -> list[TokenizedExample]:
        """Return the examples, none of a row that is left out.

        Raises:
            UserError: the row ends the run.
        """
        try:
            examples = self.process(record)
            for example in examples:
                self.layout.check(example)
        except BadRowError as error:
            self.bad_rows.add(record.location, error)
            return []
        except UserError as error:
            raise UserError(f"{record.location}: {error}") from error
        return examples
