"""How an encoder makes a vector of the hidden states of a text, by the files that sentence-transformers writes."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_tr.embedded.model import resolve
from lit_tr.errors import UserError, explained

MODES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": lambda hidden, mask: hidden[:, 0],
    "max": lambda hidden, mask: hidden.masked_fill(mask == 0, -math.inf).amax(1),
    "mean": lambda hidden, mask: (hidden * mask).sum(1) / mask.sum(1),
    "lasttoken": lambda hidden, mask: hidden[torch.arange(len(hidden), device=hidden.device), mask.sum((1, 2)) - 1],
}
"""From hidden states `(texts, tokens, size)` and a mask `(texts, tokens, 1)`, padded on the right, to vectors."""
OLD = "pooling_mode_"
"""With `_tokens` or `_token` behind it, a mode in the files of sentence-transformers before 5."""


class Pooling(NamedTuple):
    """How hidden states become a vector.

    Attributes:
        mode: `mean` of the tokens, their `max` in each dimension, `cls`, the first, or `lasttoken`.
        normalized: divide by its length.
    """

    mode: str = "mean"
    normalized: bool = False

    def __call__(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the vectors, `(texts, size)`, of what `MODES` takes."""
        vectors = MODES[self.mode](hidden, mask)
        return torch.nn.functional.normalize(vectors) if self.normalized else vectors


def pooling_of(path: str) -> Pooling:
    """Return what `modules.json` of a folder or hub id says; the mean where there is no such file.

    Raises:
        UserError: there are modules other than a Transformer, its Pooling and Normalize, such as Dense, or the pooling
            is none of `MODES`; or a file cannot be read.
    """
    modules = _read(path, "modules.json")
    if modules is None:
        return Pooling()
    with explained(f"{path}: its modules cannot be read", TypeError, KeyError, AttributeError):
        names = [one["type"].rpartition(".")[2] for one in modules]
        if names[:2] != ["Transformer", "Pooling"] or {*names[2:]} - {"Normalize"}:
            raise UserError(
                f"{path}: an encoder is computed as a Transformer, Pooling, and Normalize or not; its modules are "
                f"{', '.join(names) or 'none'}. Give another one"
            )
        name = f"{modules[1]['path']}/config.json"
        if (config := _read(path, name)) is None:
            raise UserError(f"{path}: there is no {name}, which says how it pools")
        modes = _modes(config)
    if len(modes) != 1 or modes[0] not in MODES:
        raise UserError(f"{path}: its pooling is {' and '.join(modes)}, and one of {', '.join(MODES)} is computed")
    return Pooling(modes[0], "Normalize" in names)


def _modes(config: dict[str, Any]) -> list[str]:
    if given := config.get("pooling_mode"):
        return [given] if isinstance(given, str) else list(given)
    old = [key.removeprefix(OLD) for key, is_on in config.items() if key.startswith(OLD) and is_on]
    return [one.removesuffix("_tokens").removesuffix("_token") for one in old] or ["mean"]


def _read(path: str, name: str) -> Any:
    """Return what a file of a folder or hub id holds; None where there is none."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    folder = Path(resolve(path))
    with explained(f"{path}: {name} cannot be read", OSError, ValueError):
        try:
            file = folder / name if folder.is_dir() else Path(hf_hub_download(path, name))
            return json.loads(file.read_text())
        except (FileNotFoundError, EntryNotFoundError):
            return None
