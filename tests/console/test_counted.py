import io
import math
import time

import pytest
from rich.console import Console

from lit_tr.console import counted
from lit_tr.console.counted import CountedProgress


@pytest.fixture
def terminal(monkeypatch):
    """What a terminal gets."""
    screen = io.StringIO()
    monkeypatch.setattr(counted, "console", lambda: Console(file=screen, force_terminal=True, width=100))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    return screen


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_lines_where_there_is_no_terminal(capsys):
    clock = Clock()
    with CountedProgress("tiny", 10, done=2, every_seconds=30, clock=clock) as progress:
        for seconds in (10, 12, 45, 50):
            clock.now = seconds
            progress.add(2, 100)
    assert capsys.readouterr().out.splitlines() == [
        "tiny  4/10 responses  10 tokens/s  0:10  left 0:30",  # 2 of 8 in 10 s
        "tiny  8/10 responses  7 tokens/s  0:45  left 0:15",
        "tiny  10/10 responses  8 tokens/s  0:50  left 0:00",
    ]


def test_nothing_is_printed_where_nothing_was_left_to_do(capsys):
    with CountedProgress("tiny", 10, done=10):
        pass
    assert capsys.readouterr().out == ""


def test_one_live_line_in_a_terminal(terminal):
    with CountedProgress("tiny", 4) as progress:
        progress.add(4, 40)
    shown = terminal.getvalue()
    assert "4/4 responses" in shown.splitlines()[-2 if shown.endswith("\n") else -1] or "4/4 responses" in shown
    assert shown.count("\n") <= 2


def test_what_is_done_on_the_way_says_nothing_unless_it_takes_long(capsys):
    clock = Clock()
    for seconds, said in (
        (4, []),
        (6, ["rows  1/2 responses  0:06  left 0:06", "rows  2/2 responses  0:06  left 0:00"]),
    ):
        clock.now = 0.0
        with CountedProgress("rows", 2, clock=clock, after=5) as progress:
            clock.now = seconds
            progress.add(1)
            progress.add(1)
        assert capsys.readouterr().out.splitlines() == said


def test_what_counts_nothing_for_long_is_said_to_run(capsys):
    with CountedProgress("a batch", 2, after=0.01):
        time.sleep(0.3)
    time.sleep(0.1)
    assert capsys.readouterr().out == "a batch  0/2 responses  0:00  left ?\n"


def test_where_nobody_knows_how_many_there_are_no_end_is_foretold(capsys):
    clock = Clock()
    with CountedProgress("rows", math.inf, what="rows", clock=clock) as progress:
        clock.now = 2
        progress.add(5)
    assert capsys.readouterr().out.splitlines() == ["rows  5 rows  0:02"] * 2


def test_other_ranks_count_in_silence(capsys):
    with CountedProgress("tiny", 2, show=False) as progress:
        progress.add(1)
    assert capsys.readouterr().out == ""


def test_nothing_stays_in_a_terminal_of_what_is_done_on_the_way(terminal):
    with CountedProgress("on the way", 4, after=5) as progress:
        progress.add(4)
    assert "4/4 responses" in terminal.getvalue()
    assert terminal.getvalue().endswith("\x1b[2K")  # the line is erased
