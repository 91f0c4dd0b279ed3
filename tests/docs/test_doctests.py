"""The examples in docstrings give what they say."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    str(path.relative_to(ROOT).with_suffix("")).replace("/", ".")
    for path in (ROOT / "lit_tr").rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name):
    failed, tried = doctest.testmod(import_module(name))
    assert tried
    assert not failed


def test_losses_metrics_and_formats_have_examples():
    files = {path.stem for path in (ROOT / "lit_tr" / "losses").glob("*.py")} - {"__init__", "pairs"}
    families = {f"lit_tr.losses.{name}" for name in files}
    formats = {
        f"lit_tr.data.formats.{name}" for name in ("conversion", "detect", "pairs", "rated", "unpaired", "votes")
    }
    assert families | formats | {"lit_tr.metrics"} <= set(MODULES)
