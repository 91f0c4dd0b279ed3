"""Warnings of lit_tr: one line each, on the command line and in Python."""

import warnings
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn  # Lightning sets a format too: of its warnings, before ours


class LitTRWarning(UserWarning):
    """What lit_tr warns of."""


def warn(message: str) -> None:
    """Warn on rank 0."""
    rank_zero_warn(message, stacklevel=5, category=LitTRWarning)


_format_others = warnings.formatwarning


def _format(message: Any, category: type[Warning], *args: Any, **kwargs: Any) -> str:
    if issubclass(category, LitTRWarning):  # without the place in lit_tr's code
        return f"lit-tr: warning: {message}\n"
    return _format_others(message, category, *args, **kwargs)


warnings.formatwarning = _format
