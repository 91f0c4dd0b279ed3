"""Batches of a source that is read while training goes on, and goes on exactly after a stop."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.utils.data import IterableDataset, get_worker_info
from torchdata.stateful_dataloader import StatefulDataLoader

from lit_tr.data.bad_rows import MANY, BadRow, BadRows, write
from lit_tr.data.batches import PairBatch
from lit_tr.data.collator import Collator
from lit_tr.data.packing import BatchLayout
from lit_tr.data.process import RowProcessor
from lit_tr.data.rows import Cursor, Source
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.errors import BadRowError, UserError


class Stream(IterableDataset):
    """The batches of one rank, read from a source some thousand examples at a time.

    Readers (each worker of each rank is one) take turns by the rows of the source: with n readers, reader k takes rows
    k, k + n, ... and passes over the others without decoding them. So no row has two readers, however many files there
    are, and readers end at most a row apart. Each reader gathers examples, shuffles those it holds, and makes batches
    of them; then it gathers the next. Its state is where it began to gather and how many batches it has made of that;
    a reader that goes on gathers the same examples again.

    Args:
        source: where the rows come from.
        processor: makes examples of records.
        layout: says which examples make a batch.
        collator: makes batches.
        buffer: how many examples a reader holds at a time, a few more where rows give several.
        shuffle: let files, and the examples that are held, come in an order of their own in each epoch.
        seed: seed of that order.
        rank: number of this rank.
        ranks: number of ranks.
        max_bad_rows: how many rows each reader may leave out, as for `BadRows`; a share is judged from 1,000 rows on.
        listed_in: JSON lines file of the bad rows, to which each reader adds its number; None lists them nowhere.
    """

    def __init__(
        self,
        source: Source,
        processor: RowProcessor,
        layout: BatchLayout,
        collator: Collator,
        buffer: int,
        shuffle: bool = True,
        seed: int = 0,
        rank: int = 0,
        ranks: int = 1,
        max_bad_rows: float = 0.01,
        listed_in: Path | None = None,
    ) -> None:
        super().__init__()
        self.source, self.processor, self.layout, self.collator = source, processor, layout, collator
        self.buffer, self.max_bad_rows, self.listed_in = buffer, max_bad_rows, listed_in
        self.shuffle, self.seed, self.rank, self.ranks = shuffle, seed, rank, ranks
        self.epoch = 0
        self._state: dict[str, Any] | None = None
        self._resume: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[PairBatch]:
        """Yield the batches of the epoch, or the rest of it after a loaded state."""
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        reader, readers = self.rank * workers + number, self.ranks * workers
        state = self._resume or {"cursor": None, "row": 0, "block": 0, "done": 0, "carried": []}
        self._state, self._resume = state, None
        cursor = self.source.records(self.seed + self.epoch if self.shuffle else None, state["cursor"])
        layout, ended, bad_rows = self.layout, False, BadRows(self.max_bad_rows)
        while not ended:
            examples = [TokenizedExample(**one) for one in state["carried"]]
            before = len(bad_rows.found)
            row, ended = self._gather(cursor, bad_rows, examples, state["row"], reader, readers)
            new = bad_rows.found[before:]
            if self.listed_in and new and not (self.epoch or state["done"]):  # listed when they are first met
                write(self.listed_in.with_suffix(f".{reader}.jsonl"), new, "a")
            batches = layout.batches(list(map(self.collator.tokens, examples)), self._draw(state["block"], reader))
            carried = []
            if layout.batch_size and batches and not ended and len(batches[-1]) < layout.batch_size:
                carried = [dict(vars(examples[i])) for i in batches.pop()]
            block = state["block"] + 1
            then = {"cursor": cursor.state(), "row": row, "block": block, "done": 0, "carried": carried}
            for done in range(state["done"] + 1, len(batches) + 1):
                self._state = then if done == len(batches) and not ended else {**state, "done": done}
                yield self.collator([examples[i] for i in batches[done - 1]])
            state = then

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this reader after its last batch."""
        return {"state": self._resume or self._state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after that batch at the next `__iter__`."""
        self._resume = state_dict["state"]

    def _gather(
        self, cursor: Cursor, bad_rows: BadRows, examples: list[TokenizedExample], row: int, reader: int, readers: int
    ) -> tuple[int, bool]:
        """Add examples of this reader's rows; return the row that comes next, and whether there is none."""
        while len(examples) < max(self.buffer, self.layout.batch_size or 1):
            others = (reader - row) % readers
            record = None if others and cursor.skip(others) < others else next(cursor, None)
            if record is None:
                bad_rows.add(0, [])
                return row, True
            row += others + 1
            try:
                found = self.processor(record)
                for example in found:
                    self.layout.check(self.collator.tokens(example))
                examples += found
                bad_rows.add(record.row is not None, [], judge=False)
            except BadRowError as error:
                bad_rows.add(1, [BadRow.of(record.location, error)], judge=bad_rows.rows >= MANY)
            except UserError as error:
                raise UserError(f"{record.location}: {error}") from error
        return row, False

    def _draw(self, block: int, reader: int) -> torch.Generator | None:
        if not self.shuffle:
            return None
        seed = np.random.SeedSequence([self.seed, self.epoch, block, reader]).generate_state(1)[0]
        return torch.Generator().manual_seed(int(seed))


class RankLoader(StatefulDataLoader):
    """Loads the batches of one rank's stream, as many on every rank, and goes on exactly after a stop.

    Where a rank has no batch left and another one has, it gets `dummy` batches, which weigh nothing.

    Args:
        stream: the stream of this rank.
        num_workers: worker processes that read, tokenize and make batches; 0 lets the training process do so.
        dummy: a batch that weighs nothing.
    """

    def __init__(self, stream: Stream, num_workers: int, dummy: PairBatch) -> None:
        super().__init__(
            stream, batch_size=None, num_workers=num_workers, collate_fn=_same, generator=torch.Generator()
        )
        self.stream, self.dummy = stream, dummy
        self._epoch, self._state, self._resumes = -1, None, False
        self._group = _cpu_group() if stream.ranks > 1 else None

    def __iter__(self) -> Iterator[PairBatch]:
        """Yield the batches of the next epoch, or the rest of the one that was loaded."""
        if not self._resumes:
            self._epoch, self._state = self._epoch + 1, None
        self._resumes = False
        self.stream.epoch = self._epoch
        batches = super().__iter__()
        while True:
            batch, error = None, None
            try:
                batch = next(batches, None)
            except UserError as caught:  # a worker's error comes with the traceback in its message
                error = UserError(str(caught).rpartition("UserError: ")[2].strip())
            if not self._any(batch is not None, error):
                return
            self._state = super().state_dict() if batch is not None else self._state
            yield self.dummy if batch is None else batch

    def state_dict(self) -> dict[str, Any]:
        """Return where this rank stands after its last batch."""
        return {
            "epoch": self._epoch,
            "state": self._state,
            "readers": [self.stream.ranks, self.num_workers],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on after that batch at the next `__iter__`.

        Raises:
            UserError: the ranks or workers were others.
        """
        now, then = [self.stream.ranks, self.num_workers], state_dict["readers"]
        if now != then:
            raise UserError(
                f"the checkpoint's state of the data is that of {then[0]} ranks with {then[1]} workers each, and now "
                f"there are {now[0]} with {now[1]}: go on with as many, for rows would be repeated or left out; or "
                "export the policy and start a new run from it"
            )
        self._epoch, self._state, self._resumes = state_dict["epoch"], state_dict["state"], True
        if self._state is not None:
            super().load_state_dict(self._state)

    def _any(self, has: bool, error: UserError | None) -> bool:
        """Return whether any rank has a batch.

        Raises:
            UserError: a rank has met a row that ends the run.
        """
        if self._group is not None:
            found = torch.tensor([has, error is not None], dtype=torch.int32)
            distributed.all_reduce(found, op=distributed.ReduceOp.MAX, group=self._group)
            has, failed = map(bool, found.tolist())
            if failed and error is None:
                error = UserError("another rank has met a bad row, and says which")
        if error is not None:
            raise error
        return has


def _cpu_group() -> Any:
    return distributed.new_group(backend="gloo") if distributed.get_backend() != "gloo" else distributed.group.WORLD


def _same(batch: PairBatch) -> PairBatch:
    return batch
