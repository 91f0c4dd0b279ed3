"""PreferenceDataModule: sources -> tokenized examples -> batches."""

import json
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import Sampler
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lit_tr.data.collator import Collator
from lit_tr.data.intake import BadRows, Intake, Layout
from lit_tr.data.packing import fill
from lit_tr.data.process import RowProcessor
from lit_tr.data.rows import Source
from lit_tr.data.sampling import EvaluationSampler, ResumableSampler
from lit_tr.data.stream import RankLoader, Stream
from lit_tr.data.tokenization import TokenizedExample, Turns
from lit_tr.embedded.model import resolve
from lit_tr.errors import UserError

Examples = list[TokenizedExample]
BAD_ROWS = "skipped_rows"


class PreferenceDataModule(LightningDataModule):
    """Batches of preference pairs, or of unpaired labelled rows, for training and evaluation.

    All rows are read, checked and tokenized in `setup`, so that a bad row is named before any training step. Where they
    are too many for that, `buffer` lets those of training be read as training goes on.

    Args:
        tokenizer: folder or hub id of the tokenizer; the command line takes it from `model.policy.path`.
        train: rows to train on.
        val: rows to validate on during training.
        test: rows for `test` and `predict`; those of `val` where there are none.
        batch_size: examples (pairs, or unpaired rows) in a batch on each rank; 4 if there is no max_tokens either.
        max_tokens: fill batches up to so many packed tokens instead of counting examples. They are filled once, evenly;
            each epoch brings them in another order. The gradient of a step stays that of the mean over its examples.
        max_length: most tokens of a prompt and one response.
        cut_prompts: cut a prompt that is too long on the left; if False such a row is a bad row.
        turns: where a response has several messages, score the `last` one of the assistant or `all` of the assistant's;
            the others are context, and so are the assistant's earlier turns in a prompt.
        on_bad_row: what to do with a bad row: `raise` names the first one, `skip` leaves them out and logs how many,
            by reason, and lists them in `skipped_rows...jsonl` in the run's folder.
        shuffle: train in a new random order each epoch.
        seed: seed of that order.
        mismatched: add the mismatched rows of KTO's KL baseline to the batches; the command line takes it from the
            loss.
        packed: pack responses after shared prompts, so that no token is computed twice; False pads each response.
        num_workers: worker processes that make batches; with a `buffer` they read and tokenize as well.
        buffer: examples that a reader holds at a time: it reads so many, shuffles them, makes batches of them, and
            reads on. A checkpoint goes on exactly from where it was. The number of batches is not known beforehand, so
            `val_check_interval` counts batches. None reads all rows first.
        bucket_by_length: with a `buffer` and `batch_size`, put examples of about the same length into a batch: less
            padding for `packed: false`.
    """

    def __init__(
        self,
        tokenizer: str,
        train: Source,
        val: Source | None = None,
        test: Source | None = None,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        max_length: int = 1024,
        cut_prompts: bool = True,
        turns: Turns = "last",
        on_bad_row: str = "raise",
        shuffle: bool = True,
        seed: int = 0,
        mismatched: bool = False,
        packed: bool = True,
        num_workers: int = 0,
        buffer: int | None = None,
        bucket_by_length: bool = False,
    ) -> None:
        super().__init__()
        if on_bad_row not in ("raise", "skip"):
            raise UserError(f"PreferenceDataModule: on_bad_row must be 'raise' or 'skip', not {on_bad_row!r}")
        if turns not in ("last", "all"):
            raise UserError(f"PreferenceDataModule: turns must be 'last' or 'all', not {turns!r}")
        if batch_size and max_tokens:
            raise UserError("PreferenceDataModule: give batch_size or max_tokens, and null for the other one")
        if max_tokens and not packed:
            raise UserError(
                "PreferenceDataModule: max_tokens counts packed tokens: leave packed true, or give batch_size"
            )
        if batch_size is None and max_tokens is None:
            batch_size = 4
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("max_tokens", max_tokens, 1),
            ("max_length", max_length, 3),
            ("num_workers", num_workers, 0),
            ("buffer", buffer, 1),
        ):
            if value is not None and value < least:
                raise UserError(f"PreferenceDataModule: {name} must be at least {least}, not {value}")
        self.sources = {"train": train, "val": val, "test": test or val}
        self.examples: dict[str, Examples] = {}
        self.tokenizer_path = tokenizer
        self.batch_size, self.max_tokens = batch_size, max_tokens
        self.max_length, self.num_workers = max_length, num_workers
        self.packed, self.buffer, self.bucket_by_length = packed, buffer, bucket_by_length
        self._folder: Path | None = None
        if bucket_by_length and not (buffer and batch_size):
            raise UserError(
                "PreferenceDataModule: bucket_by_length sorts what a buffer holds: give buffer and batch_size"
            )
        self.cut_prompts, self.turns, self.on_bad_row = cut_prompts, turns, on_bad_row
        self.shuffle, self.seed, self.mismatched = shuffle, seed, mismatched
        if mismatched and batch_size == 1:
            raise UserError(
                "PreferenceDataModule: mismatched rows borrow from the batch: batch_size must be at least 2"
            )

    def setup(self, stage: str) -> None:
        """Read, check and tokenize the rows that a stage needs; with a `buffer`, those of training are left to it.

        Raises:
            UserError: a source, a row or the tokenizer is not as it should be.
        """
        assert self.tokenizer
        trainer = self.trainer
        self._folder = Path(trainer.log_dir or trainer.default_root_dir) if trainer else None
        wanted = {"fit": ["train", "val"], "validate": ["val"]}.get(stage, ["test"])
        if self.sources[wanted[0]] is None:
            raise UserError(f"PreferenceDataModule: give data.{wanted[0]} for {stage!r}")
        for name in wanted:
            source = self.sources[name]
            if source is not None and name not in self.examples and not (name == "train" and self.buffer):
                self.examples[name] = self._read(name, source)

    def teardown(self, stage: str) -> None:
        """Log which rows of a stream were left out."""
        if stage == "fit" and self.buffer and self._rank == 0:
            files = self._folder.glob(f"{BAD_ROWS}.train.*.jsonl") if self._folder else []
            lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
            self._log_bad_rows("train", Counter(line["reason"] for line in lines))

    def train_dataloader(self) -> StatefulDataLoader:
        """Return the loader of the training rows."""
        if self.buffer:
            return self._streamed(cast(Source, self.sources["train"]), self.buffer)
        rows: Examples | list[Examples] = self.examples["train"]
        if self.max_tokens:
            sizes = [self.collator.tokens(example) for example in self.examples["train"]]
            packs = fill(sizes, self.max_tokens, self._ranks, self.seed)
            rows = [[self.examples["train"][i] for i in pack] for pack in packs]
        sampler = ResumableSampler(rows, self._ranks, self._rank, shuffle=self.shuffle, seed=self.seed)
        return self._loader(rows, None if self.max_tokens else self.batch_size, sampler)

    def val_dataloader(self) -> StatefulDataLoader | list:
        """Return the loader of the validation rows, or an empty list where there are none."""
        return self._in_order("val") if "val" in self.examples else []

    def test_dataloader(self) -> StatefulDataLoader:
        """Return the loader of the test rows."""
        return self._in_order("test")

    def predict_dataloader(self) -> StatefulDataLoader:
        """Return the loader of the test rows."""
        return self._in_order("test")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the policy."""
        return load_tokenizer(self.tokenizer_path)

    @property
    def collator(self) -> Collator:
        """What makes batches of examples."""
        return Collator(self.packed, self.mismatched, self.max_length, self.tokenizer.bos_token_id)

    def intake(self, name: str, list_to: Path | None = None) -> Intake:
        """Return what becomes of the rows of a source.

        Args:
            name: `train`, `val` or `test`.
            list_to: folder of the list of bad rows; None lists them nowhere.
        """
        processor = RowProcessor(self.tokenizer, self.max_length, self.cut_prompts, self.turns)
        layout = Layout(self.collator, self.batch_size, self.max_tokens, self.bucket_by_length)
        file = list_to / f"{BAD_ROWS}.{name}.jsonl" if list_to else None
        return Intake(processor, layout, BadRows(self.on_bad_row == "skip", file))

    @property
    def _ranks(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    def _streamed(self, source: Source, buffer: int) -> RankLoader:
        intake = self.intake("train", self._folder)
        stream = Stream(source, intake, buffer, self.shuffle, self.seed, self._rank, self._ranks)
        return RankLoader(stream, self.num_workers, self.collator([]))

    def _in_order(self, name: str) -> StatefulDataLoader:
        rows = self.examples[name]
        # as many rows as surely keep within the budget: the order of evaluated rows is that of the source
        size = self.batch_size or cast(int, self.max_tokens) // max(map(self.collator.tokens, rows))
        return self._loader([*rows, None], size, EvaluationSampler(cast(Any, rows), self._ranks, self._rank))

    def _loader(self, rows: Sequence[Any], batch_size: int | None, sampler: Sampler) -> StatefulDataLoader:
        return StatefulDataLoader(
            rows,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=self.collator,
            num_workers=self.num_workers,
            generator=torch.Generator(),  # or each epoch would draw from the random state that dropout draws from
        )

    def _read(self, name: str, source: Source) -> Examples:
        intake = self.intake(name, None if self._rank else self._folder)
        examples = [example for record in source.records() for example in intake(record)]
        self._log_bad_rows(name, intake.bad_rows.counts)
        if cut := sum(example.cut > 0 for example in examples):
            rank_zero_info(f"{source}: cut {cut} prompts on the left to fit max_length {self.max_length}")
        if not examples:
            raise UserError(f"data.{name}: {source} has no rows to train on")
        return examples

    def _log_bad_rows(self, name: str, counts: Counter[str]) -> None:
        if counts:
            reasons = "; ".join(f"{count} x {reason}" for reason, count in counts.most_common())
            place = f"; they are listed in {self._folder}" if self._folder else ""
            rank_zero_info(f"data.{name}: skipped {counts.total()} rows: {reasons}{place}")


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or hub id.

    Raises:
        UserError: there is none, or it has no end-of-sequence token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(resolve(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no tokenizer in this folder, and none on the hub can be reached ({error})") from error
    if tokenizer.eos_token_id is None:
        raise UserError(f"{path}: the tokenizer has no end-of-sequence token, so a response could never end")
    return tokenizer
