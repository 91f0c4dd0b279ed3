"""Records -> blocks of tokenized examples, in several processes."""

import gc
import json
import os
import signal
import sys
from collections.abc import Iterator
from hashlib import blake2b
from itertools import chain, cycle, islice
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from lit_tr.data.bad_rows import BadRow
from lit_tr.data.process import RowProcessor
from lit_tr.data.rows import Cursor, Record, Source
from lit_tr.data.tokenization import TokenizedExample
from lit_tr.errors import BadRowError, UserError, explained

SCHEMA = pa.schema(
    [
        ("ids", pa.list_(pa.int32())),  # prompt, chosen and rejected response, one after the other
        ("prompt", pa.int32()),  # tokens of each; -1 where there is no such response
        ("chosen", pa.int32()),
        ("rejected", pa.int32()),
        ("scored", pa.list_(pa.bool_())),  # of the responses; null where all tokens are
        ("margin", pa.float64()),
        ("confidence", pa.float64()),
        ("labels", pa.string()),  # JSON; null where there are none
        ("subset", pa.string()),
        ("truncated", pa.int32()),  # tokens that were taken off the prompt, and off each response
        ("responses_truncated", pa.list_(pa.int32(), 2)),
        ("prompt_hash", pa.int64()),
        ("location", pa.string()),
    ]
)
BLOCK = 500
"""Records that are processed at a time."""
ALONE = 100
"""Records that are processed before it is worth starting processes."""


class Block(NamedTuple):
    """What became of some records.

    Args:
        table: the examples, columns as in `SCHEMA`.
        rows: number of rows, bad ones too.
        bad: the bad rows.
        unread: columns that no format read.
        made_chat: rows whose text became chat messages.
    """

    table: pa.Table
    rows: int
    bad: list[BadRow]
    unread: frozenset[str]
    made_chat: int


def blocks(source: Source, processor: RowProcessor, processes: int | None = None) -> Iterator[Block]:
    """Yield all blocks of a source, in its order.

    Args:
        source: where the rows come from.
        processor: makes examples of them.
        processes: how many processes; None takes one for each core. Other systems than Linux have one.

    Raises:
        UserError: a file, a format or the tokenizer is not as it should be; or a process was killed.
    """
    cursor, size = source.records(), ALONE
    count = (processes or len(os.sched_getaffinity(0))) if sys.platform == "linux" else 1
    while count == 1 or size == ALONE:
        records = _taken(source, cursor, size)
        if records:
            yield process_block(records, processor)
        if len(records) < size:
            return
        size = BLOCK
    yield from _of_processes(source, processor, cursor.state(), count)


def _taken(source: Source, cursor: Cursor, size: int) -> list[Record]:
    with explained(f"{source}: the rows cannot be read", OSError):  # or it would pass for one of the cache's folder
        return list(islice(cursor, size))


def process_block(records: list[Record], processor: RowProcessor) -> Block:
    """Return what becomes of some records.

    Raises:
        UserError: a format or the tokenizer is not as it should be; the message names the row.
    """
    examples: list[TokenizedExample] = []
    locations: list[str] = []
    bad: list[BadRow] = []
    unread: frozenset[str] = frozenset()
    made_chat = 0
    for record in records:
        try:
            found, ignored, chat = processor.process(record)
        except BadRowError as error:
            bad.append(BadRow.of(record.location, error))
        except UserError as error:
            raise UserError(f"{record.location}: {error}") from error
        else:
            unread |= ignored
            made_chat += chat
            examples += found
            locations += [record.location] * len(found)
    rows = sum(record.row is not None for record in records)
    return Block(_table(examples, locations), rows, bad, unread, made_chat)


def _table(examples: list[TokenizedExample], locations: list[str]) -> pa.Table:
    parts = [ids for e in examples for ids in (e.prompt, *e.responses)]
    lengths = [len(e.prompt) + sum(map(len, e.responses)) for e in examples]
    ids = np.fromiter(chain.from_iterable(parts), np.int32, sum(lengths))
    columns: dict[str, Any] = {
        "ids": pa.ListArray.from_arrays(np.cumsum([0, *lengths], dtype=np.int32), ids),
        "prompt": [len(e.prompt) for e in examples],
        "chosen": [-1 if e.chosen is None else len(e.chosen) for e in examples],
        "rejected": [-1 if e.rejected is None else len(e.rejected) for e in examples],
        "scored": [_scored(e) for e in examples],
        "margin": [e.margin for e in examples],
        "confidence": [e.confidence for e in examples],
        "labels": [json.dumps(dict(e.labels)) if e.labels else None for e in examples],
        "subset": [e.subset for e in examples],
        "truncated": [e.truncated for e in examples],
        "responses_truncated": [e.responses_truncated for e in examples],
        "prompt_hash": [_hash(e.prompt) for e in examples],
        "location": locations,
    }
    return pa.table(columns, SCHEMA)


def _scored(example: TokenizedExample) -> list[bool] | None:
    if example.chosen_scored is None and example.rejected_scored is None:
        return None
    return [one for ids, scored in example.masked for one in (scored or [True] * len(ids))]


def _hash(ids: list[int]) -> int:
    digest = blake2b(np.asarray(ids, dtype=np.int32).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, signed=True)


def _of_processes(source: Source, processor: RowProcessor, state: Any, count: int) -> Iterator[Block]:
    """Yield the blocks from a state on: process k of n takes the blocks k, k + n, ... and skips the others."""
    context = get_context("fork")
    receivers: list[Connection] = []
    processes = []
    try:
        for number in range(count):
            receiver, sender = context.Pipe(duplex=False)
            arguments = (source, processor, state, number, count, sender)
            processes.append(context.Process(target=_work, args=arguments, daemon=True))
            receivers.append(receiver)
            processes[-1].start()
            sender.close()  # so that the end of the process ends the pipe, within a block too
        for number in cycle(range(count)):
            block = _received(receivers[number])
            if block is None:
                return
            if isinstance(block, Exception):
                raise block
            yield block
    finally:
        for process in processes:
            process.kill()
            process.join()


def _received(receiver: Any) -> Any:
    """Return what comes next from a process.

    Raises:
        UserError: it was killed.
    """
    try:
        return receiver.recv()
    except (EOFError, OSError):
        raise UserError(
            "a process that tokenizes rows was killed, for want of memory perhaps: set data.processes lower"
        ) from None


def _work(source: Source, processor: RowProcessor, state: Any, number: int, count: int, sender: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that started this one ends it
    sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # a live display has its lock and its thread there
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads are not in this process
    gc.freeze()  # or each collection would go through what this process shares with that one, and copy it
    try:
        cursor = source.records(None, state)
        skipped = number * BLOCK
        while cursor.skip(skipped) == skipped and (records := _taken(source, cursor, BLOCK)):
            sender.send(process_block(records, processor))
            skipped = (count - 1) * BLOCK
        sender.send(None)
    except Exception as error:
        sender.send(error)
