"""The command that proves and measures a card, tried without one."""

import ast
import json
import shlex
import subprocess
import sys
from importlib.metadata import packages_distributions, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

SCRIPT = Path(__file__).with_name("h100.py")
ROOT = SCRIPT.parents[2]


@pytest.mark.slow
def test_all_stages_run_and_all_proofs_hold_without_a_card(tmp_path):
    command = [sys.executable, str(SCRIPT), "--device", "cpu", "--size", "tiny", "--out", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    outcomes = [one["outcome"] for one in results["proofs"]]
    assert outcomes.count("holds") >= 4
    assert {"failure", "error"}.isdisjoint(outcomes)
    made = results["stages"]["make"]
    assert 3 * made["packed_tokens"] > made["padded_tokens"] > made["packed_tokens"]
    for stage in ("configured", "kept", "compiled", "trl"):
        assert results["stages"][stage]["seconds"] > 0
    assert "lit_tr, compiled" in (tmp_path / "table.md").read_text()


def test_a_stage_that_fails_is_shown_and_takes_no_other_with_it(tmp_path):
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import h100
    finally:
        sys.path.remove(str(SCRIPT.parent))
    log = tmp_path / "log.txt"
    code = 'print(\'RESULT {"seconds": 2.0}\', flush=True); raise ValueError("no room")'
    failed = h100.wait(h100.spawn(tmp_path, "one", "-c", code), tmp_path, "one", log, 0.0, float("inf"))
    assert failed["failed"] == "exit code 1"
    assert failed["seconds"] == 2.0
    assert "ValueError: no room" in log.read_text()


def test_the_wheels_are_all_that_the_stages_and_the_proofs_import():
    text = SCRIPT.with_name("wheels.sh").read_text().partition("packages=(")[2].partition("\n)")[0]
    listed = {canonicalize_name(Requirement(one).name) for one in shlex.split(text, comments=True)}
    named, there = packages_distributions(), required("torch", "transformers", "pandas", "pyarrow")
    files = [ROOT / "tests/conftest.py", *(ROOT / "tests/gpu").glob("*.py"), *SCRIPT.parent.glob("h100*.py")]
    needed = {canonicalize_name(named[name][0]) for name in imported(files)}
    for one in listed:
        needed |= required(one, deep=False)
    assert {"hypothesis", "lightning", "trl", "pyyaml", "lightning-utilities"} <= needed
    assert needed - listed - there == set()


def imported(files):
    """Top names of what some files, and the files of tests that they import, import of others."""
    files, names = list(files), set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            else:
                continue
            names |= {one.partition(".")[0] for one in modules}
            beside = (folder / f"{one.replace('.', '/')}.py" for one in modules for folder in (ROOT, path.parent))
            files += [one for one in beside if one.is_relative_to(ROOT / "tests") and one.exists() and one not in files]
    return names - sys.stdlib_module_names - {"lit_tr", "tests", *(path.stem for path in files)}


def required(*names, deep=True):
    """Distributions that some need without extras, directly or at all, with themselves."""
    found = list(names)
    for name in found if deep else names:
        needs = [one for one in map(Requirement, requires(name) or []) if not one.marker or one.marker.evaluate()]
        found += {canonicalize_name(one.name) for one in needs} - {*found}
    return {*found}
