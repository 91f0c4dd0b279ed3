"""PreferenceDataModule: sources -> tokenized examples -> batches."""

from collections import Counter
from collections.abc import Iterator
from typing import cast

import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities import rank_zero_info
from torch.utils.data import Sampler
from torchdata.stateful_dataloader import StatefulDataLoader
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from lit_tr.data.batches import Collator, fill
from lit_tr.data.formats import Format
from lit_tr.data.reader import Reader
from lit_tr.data.sampling import ResumableSampler
from lit_tr.data.sources import Source
from lit_tr.data.tokenization import TokenizedExample, Turns
from lit_tr.embedded import resolve
from lit_tr.errors import BadRowError, UserError

Examples = list[TokenizedExample]
ALONE = {"num_replicas": 1, "rank": 0}


class PreferenceDataModule(LightningDataModule):
    """Batches of preference pairs, or of unpaired labelled rows, for training and evaluation.

    All rows are read, checked and tokenized in `setup`, so that a bad row is named before any training step.

    Args:
        tokenizer: folder or hub id of the tokenizer; the command line takes it from `model.policy.path`.
        train: rows to train on.
        val: rows to validate on during training.
        test: rows for `test` and `predict`; those of `val` where there are none.
        format: function from a row to an `Example` or a list of them, by import path, or `class_path` with `init_args`;
            None detects one of `lit_tr.data.formats` from the first good row of each source.
        batch_size: examples (pairs, or unpaired rows) in a batch on each rank; 4 if there is no max_tokens either.
        max_tokens: fill batches up to so many packed tokens instead of counting examples. They are filled once, evenly;
            each epoch brings them in another order. The gradient of a step stays that of the mean over its examples.
        max_length: most tokens of a prompt and one response.
        cut_prompts: cut a prompt that is too long on the left; if False such a row is a bad row.
        turns: where a response has several messages, score the `last` one of the assistant or `all` of the assistant's;
            the others are context, and so are the assistant's earlier turns in a prompt.
        on_bad_row: what to do with a bad row: `raise` names the first one, `skip` leaves them out and logs how many,
            by reason.
        shuffle: train in a new random order each epoch.
        seed: seed of that order.
        mismatched: add the mismatched rows of KTO's KL baseline to the batches; the command line takes it from the
            loss.
        packed: pack responses behind shared prompts, so that no token is computed twice; False pads each response.
        num_workers: worker processes that collate batches.
    """

    def __init__(
        self,
        tokenizer: str,
        train: Source,
        val: Source | None = None,
        test: Source | None = None,
        format: Format | None = None,
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
        ):
            if value is not None and value < least:
                raise UserError(f"PreferenceDataModule: {name} must be at least {least}, not {value}")
        self.sources = {"train": train, "val": val, "test": test or val}
        self.examples: dict[str, Examples] = {}
        self.tokenizer_path, self.format = tokenizer, format
        self.batch_size, self.max_tokens = batch_size, max_tokens
        self.max_length, self.num_workers = max_length, num_workers
        self.packed = packed
        self.cut_prompts, self.turns, self.on_bad_row = cut_prompts, turns, on_bad_row
        self.shuffle, self.seed, self.mismatched = shuffle, seed, mismatched
        if mismatched and batch_size == 1:
            raise UserError(
                "PreferenceDataModule: mismatched rows borrow from the batch: batch_size must be at least 2"
            )

    def setup(self, stage: str) -> None:
        """Read, check and tokenize the rows that a stage needs.

        Raises:
            UserError: a source, a row or the tokenizer is not as it should be.
        """
        self.tokenizer = load_tokenizer(self.tokenizer_path)
        wanted = {"fit": ["train", "val"], "validate": ["val"]}.get(stage, ["test"])
        if self.sources[wanted[0]] is None:
            raise UserError(f"PreferenceDataModule: give data.{wanted[0]} for {stage!r}")
        for name in wanted:
            source = self.sources[name]
            if source is not None and name not in self.examples:
                self.examples[name] = self._read(name, source)

    def train_dataloader(self) -> StatefulDataLoader:
        """Return the loader of the training rows."""
        ranks = {"num_replicas": self.trainer.world_size, "rank": self.trainer.global_rank} if self.trainer else ALONE
        rows: Examples | list[Examples] = self.examples["train"]
        if self.max_tokens:
            sizes = [self.collator.tokens(example) for example in self.examples["train"]]
            packs = fill(sizes, self.max_tokens, ranks["num_replicas"], self.seed)
            rows = [[self.examples["train"][i] for i in pack] for pack in packs]
        sampler = ResumableSampler(rows, **ranks, shuffle=self.shuffle, seed=self.seed)
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

    @property
    def collator(self) -> Collator:
        """What makes batches of examples."""
        return Collator(self.packed, self.mismatched, self.max_length, self.tokenizer.bos_token_id)

    def _in_order(self, name: str) -> StatefulDataLoader:
        rows = self.examples[name]
        # as many rows as surely keep within the budget: the order of evaluated rows is that of the source
        size = self.batch_size or cast(int, self.max_tokens) // max(map(self.collator.tokens, rows))
        return self._loader(rows, size)

    def _loader(
        self, rows: Examples | list[Examples], batch_size: int | None, sampler: Sampler | None = None
    ) -> StatefulDataLoader:
        return StatefulDataLoader(
            rows,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=self.collator,
            num_workers=self.num_workers,
            generator=torch.Generator(),  # or each epoch would draw from the random state that dropout draws from
        )

    def _read(self, name: str, source: Source) -> Examples:
        skipped: Counter[str] = Counter()
        examples = list(self._keep(source, skipped))
        if skipped:
            reasons = "; ".join(f"{count} x {reason}" for reason, count in skipped.most_common())
            rank_zero_info(
                f"data.{name}: skipped {skipped.total()} of {skipped.total() + len(examples)} rows: {reasons}"
            )
        if not examples:
            raise UserError(f"data.{name}: {source} has no rows to train on")
        return examples

    def _keep(self, source: Source, skipped: Counter[str]) -> Iterator[TokenizedExample]:
        reader, cut = Reader(self.tokenizer, self.format, self.max_length, self.cut_prompts, self.turns), 0
        for where, row in source.rows():
            try:
                settled = reader.settled(row)
                examples = settled(row)
                for example in examples:
                    self._check_budget(example)
            except BadRowError as error:
                if self.on_bad_row == "raise":
                    raise UserError(
                        f"{where}: {error}; mend the row, or leave such rows out by data.on_bad_row: skip"
                    ) from error
                skipped[error.reason] += 1
            except UserError as error:
                raise UserError(f"{where}: {error}") from error
            else:
                reader = settled  # a bad row does not decide the format of the others
                cut += sum(example.cut > 0 for example in examples)
                yield from examples
        if cut:
            rank_zero_info(f"{source}: cut {cut} prompts on the left to fit max_length {self.max_length}")

    def _check_budget(self, example: TokenizedExample) -> None:
        tokens = self.collator.tokens(example)
        if self.max_tokens and tokens > self.max_tokens:
            raise BadRowError(
                "the row passes max_tokens", f"{tokens} tokens with both responses, max_tokens {self.max_tokens}"
            )


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
