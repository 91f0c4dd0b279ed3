"""The command that proves and measures a card, tried without one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("h100.py")


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
