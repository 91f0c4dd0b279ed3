"""How far a count of things is: one live line in a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.live import Live
from rich.progress_bar import ProgressBar as Bar
from rich.table import Table
from rich.text import Text

from lit_tr.console.pace import as_time
from lit_tr.console.terminal import console, is_live


class CountedProgress:
    """Shows how many of some things are done, tokens a second, and the time left.

    A terminal gets one live line. Elsewhere it prints a line with the first count, then at most every `every_seconds`,
    and at the end.

    Args:
        label: what is done.
        total: how many there are; infinite if that is not known.
        done: how many were done before.
        what: what they are, in the plural.
        every_seconds: least seconds between two lines where there is no terminal.
        clock: returns seconds.
    """

    def __init__(
        self,
        label: str,
        total: float,
        done: int = 0,
        what: str = "responses",
        every_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label, self.total, self.done, self.what = label, total, done, what
        self._before, self._tokens, self._clock, self._every = done, 0, clock, every_seconds
        self._start = self._printed_at = clock()
        self._console = console()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        """Start the clock and the display."""
        self._start = self._clock()
        if is_live(self._console):
            self._live = Live(console=self._console, get_renderable=self._display, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the display."""
        if self._live is not None:
            self._live.stop()
        elif self.done > self._before and error is None:
            self._print()

    def add(self, done: int, tokens: int = 0) -> None:
        """Count more that are done, and their tokens."""
        first = self.done == self._before
        self.done += done
        self._tokens += tokens
        overdue = self._clock() - self._printed_at >= self._every
        if self._live is None and (first or overdue) and self.done < self.total:
            self._print()

    def text(self) -> str:
        """Return the line: how many, tokens a second, time passed and time left."""
        elapsed = self._clock() - self._start
        made = self.done - self._before
        left = (self.total - self.done) * elapsed / made if made else float("inf")
        rate = f"  {self._tokens / elapsed:,.0f} tokens/s" if self._tokens and elapsed > 0 else ""
        return f"{self.done}/{self.total} {self.what}{rate}  {as_time(elapsed)}  left {as_time(left)}"

    def _print(self) -> None:
        self._printed_at = self._clock()
        self._console.print(Text(f"{self.label}  {self.text()}"), soft_wrap=True)

    def _display(self) -> Table:
        line = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None):
            line.add_column(ratio=ratio, no_wrap=True)
        line.add_row(Text(self.label, style="bold"), Bar(total=self.total, completed=self.done), self.text())
        return line
