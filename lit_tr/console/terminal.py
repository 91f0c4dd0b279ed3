"""Where a run prints to."""

import os
import sys

from rich.console import Console


def console() -> Console:
    """Return the console on stdout. Only a terminal gets colours: notebooks say that they are one, and are not."""
    return Console(highlight=False, force_jupyter=False, force_terminal=sys.stdout.isatty())


def is_live(shown: Console) -> bool:
    """Whether a console can show what changes in place: a terminal that is not dumb, with colours not turned off."""
    return shown.is_terminal and not (shown.is_dumb_terminal or os.environ.get("NO_COLOR"))
