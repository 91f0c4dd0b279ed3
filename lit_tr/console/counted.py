"""How far a count of things is: one live line in a terminal, plain lines elsewhere."""

import math
import time
from collections.abc import Callable
from threading import Event, Thread
from types import TracebackType
from typing import Self

from rich.progress_bar import ProgressBar as Bar
from rich.table import Table
from rich.text import Text

from lit_tr.console.pace import as_time
from lit_tr.console.terminal import DISPLAY, console, is_live

SILENT = 5.0
"""Seconds in which what is done on the way says nothing."""


class CountedProgress:
    """Shows how many of some things are done, tokens a second, and the time left.

    A terminal gets one live line, below those of a run that it is part of. Elsewhere it prints a line with the first
    count, then at most every `every_seconds`, and at the end.

    Args:
        label: what is done.
        total: how many there are; infinite if that is not known.
        done: how many were done before.
        what: what they are, in the plural.
        every_seconds: least seconds between two lines where there is no terminal.
        clock: returns seconds.
        after: seconds before the first line where there is no terminal. If above 0, what ends before leaves no line,
            in a terminal neither, and what takes longer gets lines also while nothing is counted.
        show: whether anything is shown, on other ranks than the first, say.
    """

    def __init__(
        self,
        label: str,
        total: float,
        done: int = 0,
        what: str = "responses",
        every_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        after: float = 0.0,
        show: bool = True,
    ) -> None:
        self.label, self.total, self.done, self.what = label, total, done, what
        self._before, self._tokens, self._clock, self._every = done, 0, clock, every_seconds
        self._after, self._show = after, show
        self._start = self._due = clock()
        self._console, self._live, self._ended = console(), False, Event()

    def __enter__(self) -> Self:
        """Start the clock and the display."""
        self._start = self._clock()
        self._due = self._start + self._after
        self._live = self._show and is_live(self._console)
        if self._live:
            DISPLAY.show(self._console, self._display, transient=self._after > 0)
        elif self._show and self._after:
            Thread(target=self._print_when_due, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the display."""
        self._ended.set()
        if self._live:
            DISPLAY.hide(self._display)
            self._live = False
        elif self.done > self._before and error is None and self._clock() >= self._start + self._after:
            self._print()

    def add(self, done: int, tokens: int = 0) -> None:
        """Count more that are done, and their tokens."""
        self.done += done
        self._tokens += tokens
        if not self._live and self._clock() >= self._due and self.done < self.total:
            self._print()

    def _print_when_due(self) -> None:
        """Print while nothing is counted for long."""
        while not self._ended.wait(max(self._due - self._clock(), 0.01)):
            if self._clock() >= self._due:
                self._print()

    def text(self) -> str:
        """Return the line: how many, tokens a second, time passed and time left."""
        elapsed = self._clock() - self._start
        made = self.done - self._before
        of, left = "", ""
        if math.isfinite(self.total):
            of = f"/{self.total}"
            left = f"  left {as_time((self.total - self.done) * elapsed / made if made else math.inf)}"
        rate = f"  {self._tokens / elapsed:,.0f} tokens/s" if self._tokens and elapsed > 0 else ""
        return f"{self.done}{of} {self.what}{rate}  {as_time(elapsed)}{left}"

    def _print(self) -> None:
        self._due = self._clock() + self._every
        if self._show:
            self._console.print(Text(f"{self.label}  {self.text()}"), soft_wrap=True)

    def _display(self) -> Table:
        line = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None):
            line.add_column(ratio=ratio, no_wrap=True)
        total = self.total if math.isfinite(self.total) else None
        bar = Bar(total=total, completed=self.done, pulse=total is None)
        line.add_row(Text(self.label, style="bold"), bar, self.text())
        return line
