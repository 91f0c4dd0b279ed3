import subprocess
import sys

SCRIPT = """
import warnings
from lit_tr.warned import warn
warn("mind this")
warnings.warn("of another")
"""


def test_a_warning_of_lit_tr_is_a_line_and_those_of_others_are_as_before():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.stderr.splitlines() == ["lit-tr: warning: mind this", "<string>:5: UserWarning: of another"]
