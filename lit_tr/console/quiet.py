"""Messages of other libraries that tell a user of `lit-tr` nothing, and how all others are printed."""

import logging
import re
import sys
import warnings
from typing import Any

from transformers.utils.logging import disable_progress_bar

HINTS = re.compile(
    r"(GPU|TPU|HPU|IPU) available|Tip: For seamless|Seed set to|`Trainer\.\w+` stopped|Automatic Mixed Precision"
    r"|`weights_only` was not set|LOCAL_RANK|The following callbacks returned|Restor(ing|ed) .* from the checkpoint"
)
"""What `lit-tr` says itself, or what leads to another product."""


class _Printed(logging.Handler):
    """Prints to what is `sys.stderr` at the time, so that a live display stays whole."""

    def emit(self, record: logging.LogRecord) -> None:
        if not HINTS.search(text := record.getMessage()):
            print(f"lit-tr: {text}", file=sys.stderr)


def quieten() -> None:
    """Print Lightning's messages and warnings as lines of `lit-tr`, without hints and bars; for the command line."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).handlers = [_Printed()]
    disable_progress_bar()
    warnings.formatwarning = _line


def _line(message: Any, category: Any, *args: Any, **kwargs: Any) -> str:
    return f"lit-tr: warning: {message}\n"
