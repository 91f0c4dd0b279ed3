"""PreferenceDataModule: sources -> tokenized examples -> batches."""

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lit_tr.data.bad_rows import BadRow, BadRows, write
from lit_tr.data.cache import CacheBuilder, TokenCache
from lit_tr.data.collator import Collator
from lit_tr.data.loading import EpochLoader
from lit_tr.data.packing import BatchLayout, fill
from lit_tr.data.process import RowProcessor
from lit_tr.data.rows import Rows, Source, as_source
from lit_tr.data.stream import RankLoader, Stream
from lit_tr.data.tokenization import Turns
from lit_tr.embedded.model import resolve
from lit_tr.errors import UserError

Data = Rows | Source | str | Path
"""Rows, as a configuration gives them; in Python what `as_source` takes as well, such as a list of dicts."""


BAD_ROWS = "bad_rows"


class PreferenceDataModule(LightningDataModule):
    """Batches of preference pairs, or of unpaired labelled rows, for training and evaluation.

    All rows are tokenized before training, by one rank of a node with several processes, into an Arrow file that is
    found again by rows, formats, tokenizer and options; memory does not grow with the rows. `buffer` reads the rows of
    training as it goes on instead, for what is larger than a disk or never ends.

    Args:
        tokenizer: folder or hub id of the tokenizer, or the tokenizer; the command line takes it from
            `model.policy.path`.
        train: rows to train on: a `Source`; or a path, a hub id, a list of dicts, a `datasets.Dataset`, a data frame, a
            function that returns an iterator of dicts, with the format detected.
        val: rows to validate on during training.
        test: rows for `test` and `predict`; those of `val` where there are none.
        batch_size: examples (pairs, or unpaired rows) in a batch on each rank; 4 if there is no max_tokens either.
        max_tokens: fill batches up to so many packed tokens instead of counting examples. They are filled once, evenly;
            each epoch brings them in another order. The gradient of a step stays that of the mean over its examples.
        max_length: most tokens of a prompt and one response.
        truncate_prompts: truncate a prompt that is too long on the left, a chat by whole messages; if False such a row
            is a bad row.
        truncate_responses: truncate a response that is too long on the right; if False such a row is a bad row.
        turns: where a response has several messages, score the `last` one of the assistant or `all` of the assistant's;
            the others are context, and so are the assistant's earlier turns in a prompt.
        max_bad_rows: how many rows may be left out because they cannot be trained on: a share of all below 1, a count
            from 1 on. They are listed in `bad_rows...jsonl` in the run's folder; more end the run before training.
        shuffle: train in a new random order each epoch.
        seed: seed of that order.
        mismatched: add the mismatched rows of KTO's KL baseline to the batches; the command line takes it from the
            loss.
        packed: pack responses after shared prompts, so that no token is computed twice; False pads each response.
        num_workers: worker processes that make batches; with a `buffer` they read and tokenize as well.
        cache_dir: folder of the token cache; None is `lit_tr` in the cache of `datasets`, `HF_DATASETS_CACHE`.
        processes: processes that tokenize; None takes one for each core.
        buffer: examples that a reader holds at a time: it reads so many, shuffles them, makes batches of them, and
            reads on. A checkpoint goes on exactly from where it was, on as many ranks and workers. The number of
            batches is not known beforehand, so `val_check_interval` counts batches. None caches all rows first.
        bucket_by_length: with a `buffer` and `batch_size`, put examples of about the same length into a batch: less
            padding for `packed: false`.

    Raises:
        UserError: an argument is not as it should be.
    """

    def __init__(
        self,
        tokenizer: str | Any,
        train: Data,
        val: Data | None = None,
        test: Data | None = None,
        batch_size: int | None = None,
        max_tokens: int | None = None,
        max_length: int = 1024,
        truncate_prompts: bool = True,
        truncate_responses: bool = False,
        turns: Turns = "last",
        max_bad_rows: float = 0.01,
        shuffle: bool = True,
        seed: int = 0,
        mismatched: bool = False,
        packed: bool = True,
        num_workers: int = 0,
        cache_dir: str | None = None,
        processes: int | None = None,
        buffer: int | None = None,
        bucket_by_length: bool = False,
    ) -> None:
        super().__init__()
        if batch_size is None and max_tokens is None:
            batch_size = 4
        at_least = (
            *(("batch_size", batch_size, 1), ("max_tokens", max_tokens, 1), ("max_length", max_length, 3)),
            *(("num_workers", num_workers, 0), ("max_bad_rows", max_bad_rows, 0)),
            *(("buffer", buffer, 1), ("processes", processes, 1)),
        )
        wrong = {
            f"{name} must be at least {least}, not {value}": value is not None and value < least
            for name, value, least in at_least
        } | {
            f"turns must be 'last' or 'all', not {turns!r}": turns not in ("last", "all"),
            "give batch_size or max_tokens, and null for the other one": batch_size and max_tokens,
            "max_tokens counts packed tokens: leave packed true, or give batch_size": max_tokens and not packed,
            "mismatched rows borrow from the batch: batch_size must be at least 2": mismatched and batch_size == 1,
            "bucket_by_length sorts what a buffer holds: give buffer and batch_size": bucket_by_length
            and not (buffer and batch_size),
        }
        for message, is_wrong in wrong.items():
            if is_wrong:
                raise UserError(f"PreferenceDataModule: {message}")
        given = {"train": (train, "train"), "val": (val, "validation"), "test": (test, "test")}
        self.sources = {name: None if one[0] is None else as_source(*one) for name, one in given.items()}
        self.sources["test"] = self.sources["test"] or self.sources["val"]
        if buffer and self.sources["train"] and not self.sources["train"].streams:
            raise UserError("PreferenceDataModule: train reads all of its rows before it gives one: leave out buffer")
        self.examples: dict[str, TokenCache] = {}
        self.given_tokenizer = tokenizer
        self.layout = BatchLayout(batch_size, max_tokens, bucket_by_length)
        self.batch_size, self.max_tokens, self.max_length = batch_size, max_tokens, max_length
        self.truncate_prompts, self.truncate_responses, self.turns = truncate_prompts, truncate_responses, turns
        self.max_bad_rows, self.shuffle, self.seed = max_bad_rows, shuffle, seed
        self.mismatched, self.packed, self.num_workers = mismatched, packed, num_workers
        self.cache_dir, self.processes, self.buffer = cache_dir, processes, buffer
        self._folder: Path | None = None

    def setup(self, stage: str) -> None:
        """Tokenize the rows that a stage needs, or find their cache; with a `buffer`, those of training are left to it.

        Raises:
            UserError: a source, a row or the tokenizer is not as it should be.
        """
        trainer = self.trainer
        self._folder = Path(trainer.log_dir or trainer.default_root_dir) if trainer else None
        wanted = {"fit": ["train", "val"], "validate": ["val"]}.get(stage, ["test"])
        if self.sources[wanted[0]] is None:
            raise UserError(f"PreferenceDataModule: give data.{wanted[0]} for {stage!r}")
        for name in wanted:
            source = self.sources[name]
            if source is not None and name not in self.examples and not (name == "train" and self.buffer):
                self.examples[name] = self._cached(name, source)
        if "train" in self.examples and "val" in self.examples:
            self._name_shared_prompts()

    def teardown(self, stage: str) -> None:
        """Say which rows of a stream were left out."""
        if stage == "fit" and self.buffer and self._folder and self._rank == 0:
            files = sorted(self._folder.glob(f"{BAD_ROWS}.train.*.jsonl"))
            lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
            self._name_bad_rows("train", BadRows(1, found=[BadRow(**line) for line in lines]))

    def train_dataloader(self) -> EpochLoader | RankLoader:
        """Return the loader of the training rows."""
        if self.buffer:
            return self._streamed()
        examples = self.examples["train"]
        if not self.max_tokens:
            return self._loader(examples, None, self.batch_size or 1, self.shuffle)
        packs = fill(examples.sizes(self.collator), self.max_tokens, self.seed)
        return self._loader(examples, packs, 1, self.shuffle)

    def val_dataloader(self) -> EpochLoader | list:
        """Return the loader of the validation rows, or an empty list where there are none."""
        return self._in_order("val") if "val" in self.examples else []

    def test_dataloader(self) -> EpochLoader:
        """Return the loader of the test rows."""
        return self._in_order("test")

    def predict_dataloader(self) -> EpochLoader:
        """Return the loader of the test rows."""
        return self._in_order("test")

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the policy."""
        return load_tokenizer(self.given_tokenizer)

    @property
    def collator(self) -> Collator:
        """What makes batches of examples."""
        return Collator(self.packed, self.mismatched, self.max_length)

    @property
    def processor(self) -> RowProcessor:
        """What makes examples of rows."""
        return RowProcessor(self.tokenizer, self.max_length, self.truncate_prompts, self.truncate_responses, self.turns)

    def cached(self, name: str, max_bad_rows: float | None = None) -> TokenCache:
        """Return the token cache of a source, of all rows that can be trained on.

        Args:
            name: `train`, `val` or `test`.
            max_bad_rows: in the place of the data module's own.

        Raises:
            UserError: a source, a row or the tokenizer is not as it should be.
        """
        source, folder = self.sources[name], Path(self.cache_dir).expanduser() if self.cache_dir else None
        assert source is not None
        most = self.max_bad_rows if max_bad_rows is None else max_bad_rows
        return CacheBuilder(self.processor, folder, most, self.processes)(source, name)

    @property
    def _ranks(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    def _cached(self, name: str, source: Source) -> TokenCache:
        cache = self.cached(name)
        if self.max_tokens and (large := cache.too_large(self.collator, self.max_tokens)):
            cache.bad_rows.add(0, large)
            cache = cache.select(np.flatnonzero(cache.sizes(self.collator) <= self.max_tokens))
        self._name_bad_rows(name, cache.bad_rows)
        if cache.made_chat:
            rank_zero_info(
                f"data.{name}: the text of {cache.made_chat} rows becomes chat messages, for the tokenizer has a chat "
                f"template; data.{name}.chat: false leaves it as it is"
            )
        if cache.unread:
            rank_zero_info(f"data.{name}: columns that no format reads: {', '.join(cache.unread)}")
        if truncated := int((cache.column("truncated") > 0).sum()) if len(cache) else 0:
            rank_zero_info(f"data.{name}: truncated {truncated} prompts on the left to max_length {self.max_length}")
        if not len(cache):
            raise UserError(f"data.{name}: {source} has no rows to train on")
        return cache

    def _name_bad_rows(self, name: str, bad_rows: BadRows) -> None:
        if not bad_rows.found:
            return
        listed = ""
        if self._folder and self._rank == 0:
            path = self._folder / f"{BAD_ROWS}.{name}.jsonl"
            write(path, bad_rows.found)
            listed = f"; they are listed in {path}"
        rank_zero_info(f"data.{name}: left out {len(bad_rows.found)} rows: {bad_rows.reasons}{listed}")

    def _name_shared_prompts(self) -> None:
        train, val = (self.examples[name].column("prompt_hash") for name in ("train", "val"))
        shared = np.flatnonzero(np.isin(val, train))
        if len(shared):
            first = self.examples["val"].location(int(shared[0]))
            rank_zero_info(
                f"data.val: the prompts of {len(shared)} of {len(val)} examples are in data.train too, first {first}"
            )

    def _streamed(self) -> RankLoader:
        source = self.sources["train"]
        assert source is not None
        assert self.buffer is not None
        listed_in = self._folder / f"{BAD_ROWS}.train.jsonl" if self._folder else None
        stream = Stream(
            source,
            self.processor,
            self.layout,
            self.collator,
            self.buffer,
            shuffle=self.shuffle,
            seed=self.seed,
            rank=self._rank,
            ranks=self._ranks,
            max_bad_rows=self.max_bad_rows,
            listed_in=listed_in,
        )
        return RankLoader(stream, self.num_workers, self.collator([]))

    def _in_order(self, name: str) -> EpochLoader:
        examples = self.examples[name]
        # as many rows as surely keep within the budget: the order of evaluated rows is that of the source
        size = self.batch_size or max((self.max_tokens or 0) // int(examples.sizes(self.collator).max()), 1)
        return self._loader(examples, None, size, shuffle=False)

    def _loader(self, examples: TokenCache, packs: Any, batch_size: int, shuffle: bool) -> EpochLoader:
        return EpochLoader(
            examples, packs, batch_size, self.collator, self._rank, self._ranks, shuffle, self.seed, self.num_workers
        )


def load_tokenizer(given: str | Any) -> PreTrainedTokenizerBase:
    """Return the tokenizer of a folder or hub id; a tokenizer as it is.

    Raises:
        UserError: there is none, or it has no end-of-sequence token.
    """
    tokenizer = _load_tokenizer(str(given)) if isinstance(given, str | Path) else given
    if tokenizer.eos_token_id is None:
        raise UserError(f"{given}: the tokenizer has no end-of-sequence token, so a response could never end")
    return tokenizer


def _load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    try:
        return AutoTokenizer.from_pretrained(resolve(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no tokenizer in this folder, and none on the hub can be reached ({error})") from error
