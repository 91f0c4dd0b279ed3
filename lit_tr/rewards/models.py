"""Models of transformers and their tokenizers, and batches for them."""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch

from lit_tr.embedded.model import resolve
from lit_tr.errors import UserError, explained

T = TypeVar("T")


def loaded(kind: Any, path: str, device: str | None, dtype: str) -> Any:
    """Return a model of a folder or hub id, in evaluation mode.

    Raises:
        UserError: it cannot be loaded.
    """
    with explained(f"{path}: no {kind.__name__} can be loaded from here", OSError, ValueError):
        model = kind.from_pretrained(resolve(path), dtype=dtype)
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()


def load_tokenizer(path: str, side: str) -> Any:
    """Return a tokenizer that pads on a side.

    Raises:
        UserError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    with explained(f"{path}: no tokenizer can be loaded from here", OSError, ValueError):
        tokenizer = AutoTokenizer.from_pretrained(resolve(path), padding_side=side)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise UserError(f"{path}: its tokenizer has neither a padding nor an end token; set pad_token in its files")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def by_length(items: Sequence[T], lengths: Sequence[int], batch_size: int) -> Iterator[list[T]]:
    """Yield batches of items of similar lengths, the longest first: where memory runs out, it does so at once."""
    order = sorted(range(len(items)), key=lambda number: -lengths[number])
    for i in range(0, len(order), batch_size):
        yield [items[number] for number in order[i : i + batch_size]]
