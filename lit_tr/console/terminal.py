"""Where a run prints to."""

import os
import sys
from collections.abc import Callable

from rich.console import Console, Group, RenderableType
from rich.live import Live


def console() -> Console:
    """Return the console on stdout. Only a terminal gets colours: notebooks say that they are one, and are not."""
    return Console(highlight=False, force_jupyter=False, force_terminal=sys.stdout.isatty())


def is_live(shown: Console) -> bool:
    """Whether a console can show what changes in place: a terminal that is not dumb, with colours not turned off."""
    return shown.is_terminal and not (shown.is_dumb_terminal or os.environ.get("NO_COLOR"))


class Display:
    """The one live display of a terminal: its parts, one below the other."""

    def __init__(self) -> None:
        self._parts: list[Callable[[], RenderableType]] = []
        self._live: Live | None = None

    def show(self, shown: Console, part: Callable[[], RenderableType], transient: bool = False) -> None:
        """Show a part.

        Args:
            shown: the console, of the first part.
            part: returns what there is to see.
            transient: whether nothing stays of it; of others the last picture stays, unless parts above stay longer.
        """
        self._parts.append(part)
        if self._live is None:
            self._live = Live(console=shown, get_renderable=self._drawn, refresh_per_second=4, transient=transient)
            self._live.start()
        self._live.refresh()

    def hide(self, part: Callable[[], RenderableType]) -> None:
        """Show a part no longer."""
        if self._live is not None and len(self._parts) == 1:
            self._live.stop()  # which leaves the part where it is
            self._live = None
        self._parts.remove(part)
        if self._live is not None:
            self._live.refresh()

    def _drawn(self) -> Group:
        return Group(*(part() for part in self._parts))


DISPLAY = Display()
