import io

from rich.console import Console
from rich.text import Text

from lit_tr.console.terminal import Display


def test_parts_of_one_display_stand_one_below_the_other_and_the_last_one_stays():
    screen, display = io.StringIO(), Display()
    shown = Console(file=screen, force_terminal=True, width=40, color_system=None)
    run, evaluation = lambda: Text("run"), lambda: Text("evaluation")
    display.show(shown, run)
    display.show(shown, evaluation, transient=True)
    shown.print("line")
    assert screen.getvalue().endswith("line\nrun\nevaluation")
    display.hide(evaluation)
    display.hide(run)
    assert screen.getvalue().endswith("run\n\x1b[?25h")
    display.show(shown, evaluation)  # a display of its own
    display.hide(evaluation)
    assert screen.getvalue().endswith("evaluation\n\x1b[?25h")
