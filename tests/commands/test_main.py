import os
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest

from lit_tr.commands import main
from lit_tr.commands.main import VERBS
from tests.runs import fails

NAMES = [
    *("fit", "validate", "test", "predict", "data", "plan", "configs"),
    *("generate", "chat", "judge", "score", "iterate", "export", "report"),
]


def test_help_lists_all_verbs_with_a_line_each(capsys):
    main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [*VERBS] == NAMES
    for verb in NAMES:
        (line,) = (line for line in lines if line.split()[:1] == [verb])
        assert 20 < len(line) <= 100


def test_no_verb_prints_the_table_too_and_is_a_mistake(capsys):
    with pytest.raises(SystemExit, match="2"):
        main([])
    assert "export" in capsys.readouterr().out


@pytest.mark.parametrize("verb", NAMES)
def test_each_verb_lists_its_options(verb, capsys):
    with suppress(SystemExit):
        main([verb, *(["inspect"] if verb == "data" else []), "--help"])
    shown = capsys.readouterr().out
    assert "usage: lit-tr" in shown
    assert f"{verb} " in shown
    if verb in NAMES[:4]:
        assert "--on_conflict {error,config,checkpoint}" in shown


def test_the_version_is_that_of_the_package(capsys):
    main(["--version"])
    assert capsys.readouterr().out == f"lit-tr {version('lit-tr')}\n"


def test_an_unknown_verb_is_told_those_that_there_are(capsys):
    error = fails(capsys, "zzz", "--config=x.yaml")
    assert error == f"lit-tr: there is no verb 'zzz'\n  there are {', '.join(VERBS)}\n"


@pytest.mark.slow
@pytest.mark.parametrize("args", [["--help"], ["no_verb"]])
def test_python_runs_the_package_as_the_script(args):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-m", "lit_tr", *args], capture_output=True, text=True, env=environment)
    assert (done.returncode, "validate" in done.stdout + done.stderr) == (2 if args == ["no_verb"] else 0, True)


HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.mark.skipif(not HUGE.exists() or "[never]" in HUGE.read_text(), reason="this kernel gives no huge pages")
@pytest.mark.parametrize(("asked", "given"), [({}, True), ({"THP_MEM_ALLOC_ENABLE": "0"}, False)])
def test_tensors_of_a_verb_lie_in_huge_pages_unless_the_environment_says_otherwise(asked, given):
    script = """
import contextlib
from lit_tr.commands import main
with contextlib.suppress(SystemExit):
    main(["configs", "--help"])
import torch
held = torch.ones(64 * 2**20, dtype=torch.uint8)
rollup = open("/proc/self/smaps_rollup").read()
print(rollup.partition("AnonHugePages:")[2].split()[0])
"""
    environment = {**os.environ, **asked}
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert (int(ran.stdout.split()[-1]) >= 32 * 1024) == given
