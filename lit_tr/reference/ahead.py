"""Reference log-probs of all rows of a set, precomputed and saved on disk."""

from dataclasses import replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from lit_tr.console.counted import SILENT, CountedProgress
from lit_tr.data.tokenization import Ahead, TokenizedExample
from lit_tr.errors import UserError
from lit_tr.policy.logprobs import scoring, token_log_probs
from lit_tr.policy.sharding import of_ranks

BATCH_SIZE = 16
"""Rows per batch; in a pack each prompt with its responses is computed by itself."""


class Rows:
    """The training or validation examples of a data module, and their KL rows.

    Args:
        data: a `PreferenceDataModule` after its setup.
        name: `train` or `val`.
    """

    def __init__(self, data: Any, name: str) -> None:
        self.name, self.cache = name, data.examples[name]
        self.examples: list[TokenizedExample] = list(self.cache)
        self.collator = data.collator
        none: list[list[TokenizedExample]] = [[] for _ in self.examples]
        self.kl_rows = self.collator.kl_rows(self.examples) if self.collator.mismatched else none

    def flat(self) -> list[TokenizedExample]:
        """Return all examples to score."""
        return self.examples + [row for rows in self.kl_rows for row in rows]

    def digest(self) -> str:
        """Return a hash of the token ids and of which of them are scored."""
        hashed = blake2b(digest_size=16)
        for one in self.flat():
            hashed.update(repr((one.prompt, one.chosen, one.rejected, one.chosen_scored, one.rejected_scored)).encode())
        return hashed.hexdigest()

    def lengths(self) -> list[int]:
        """Return the number of scored tokens of each response."""
        return [len(ids) if scored is None else sum(scored) for one in self.flat() for ids, scored in one.masked]

    def attach(self, log_probs: Tensor) -> None:
        """Attach the log-probs of all scored tokens to the examples."""
        remaining = iter(log_probs.split(self.lengths()))
        own = [list(islice(remaining, len(example.responses))) for example in self.examples]
        borrowed = [list(islice(remaining, len(rows))) for rows in self.kl_rows]
        self.cache.attach(list(map(Ahead, own, self.kl_rows, borrowed)))


def score(rows: Rows, module: Any) -> Tensor:
    """Return the policy's log-probs of all scored tokens, response after response, `(scored tokens,)`.

    Each rank scores a share of the rows.
    """
    examples = rows.flat()
    rank, ranks = module.global_rank, module.trainer.world_size
    collator = replace(rows.collator, mismatched=False)
    # the same number of batches on each rank: forward passes of sharded weights are collective
    batches = [examples[i : i + BATCH_SIZE] for i in range(0, len(examples), BATCH_SIZE)]
    own = [batches[i] if i < len(batches) else [] for i in range(rank, -(-len(batches) // ranks) * ranks, ranks)]
    scored = []
    label = f"data.{rows.name}: the reference's log-probs"
    with CountedProgress(label, len(own), what="batches", after=SILENT, show=rank == 0) as progress:
        for batch in own:
            scored.append(_score(module, collator, batch))
            progress.add(1)
    gathered = of_ranks(scored)
    ordered = [gathered[i % ranks][i // ranks] for i in range(len(batches))]
    return torch.cat([log_probs for batch in ordered for log_probs in batch])


def _score(module: Any, collator: Any, examples: list[TokenizedExample]) -> list[Tensor]:
    """Return the log-probs of each response, example after example."""
    batch = collator(examples)
    placed = module.placed(batch)
    with module.trainer.precision_plugin.forward_context(), scoring(module.policy):
        log_probs = list(token_log_probs(module.policy, placed).cpu().split(batch.lengths.tolist()))
    sides = iter(log_probs[: batch.chosen]), iter(log_probs[batch.chosen :])
    pairs = [(one.chosen, one.rejected) for one in examples]
    return [next(side) for pair in pairs for side, ids in zip(sides, pair, strict=True) if ids is not None]


def load(path: Path, rows: Rows) -> Tensor:
    """Load log-probs from a file.

    Raises:
        UserError: they are those of other rows.
    """
    with safe_open(path, "pt") as file:
        if file.metadata()["rows"] != rows.digest():
            raise UserError(f"{path}: the log-probs are those of other rows: go on with the same rows, or start over")
        return file.get_tensor("log_probs")


def save(path: Path, rows: Rows, log_probs: Tensor) -> None:
    """Save log-probs in a file, which appears once it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({"log_probs": log_probs}, partial, {"rows": rows.digest()})
    partial.replace(path)
