import io

from rich.console import Console

from lit_tr.console import counted
from lit_tr.console.counted import CountedProgress


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


def test_one_live_line_in_a_terminal(monkeypatch):
    screen = io.StringIO()
    monkeypatch.setattr(counted, "console", lambda: Console(file=screen, force_terminal=True, width=100))
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with CountedProgress("tiny", 4) as progress:
        progress.add(4, 40)
    shown = screen.getvalue()
    assert "4/4 responses" in shown.splitlines()[-2 if shown.endswith("\n") else -1] or "4/4 responses" in shown
    assert shown.count("\n") <= 2
