"""Imports point one way."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "lit_tr"
KNOWS = {  # what a room may import of lit_tr, from the bottom to the top
    "errors": set(),
    "embedded": {"embedded", "data", "errors"},
    "data": {"data", "embedded.model", "errors"},
    "policy": {"policy", "embedded.model", "errors", "data.batches", "data.tokenization"},
    "reference": {"reference", "policy", "errors", "data.batches"},
    "losses": {"losses", "errors"},
    "metrics": {"losses"},
    "lookahead": {"errors"},
    "module": {"reference", "policy", "data.batches", "lookahead", "losses", "metrics", "errors"},
    "updates": {"reference.averaging", "reference.precision", "errors"},
    "evaluation": {"evaluation", "policy", "data", "losses", "metrics", "updates", "errors"},
    "planning": {"planning", "reference", "policy", "data", "module", "errors"},
}


def imports(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lit_tr"):
            yield node.module.removeprefix("lit_tr").lstrip(".")
        if isinstance(node, ast.Import):
            yield from (name.name.removeprefix("lit_tr.") for name in node.names if name.name.startswith("lit_tr"))


@pytest.mark.parametrize("room", KNOWS)
def test_imports_point_one_way(room):
    files = [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else list((ROOT / room).rglob("*.py"))
    assert files
    for file in files:
        for name in imports(file):
            assert any(name == known or name.startswith(f"{known}.") for known in KNOWS[room]), f"{file.name}: {name}"


FORMATS = {"example": {"errors"}, "rated": {"errors", "data.example"}}
FORMATS["formats"] = {"errors", "data.example", "data.rated"}


@pytest.mark.parametrize("name", FORMATS)
def test_formats_know_but_each_other(name):
    assert set(imports(ROOT / "data" / f"{name}.py")) == FORMATS[name]


def test_peft_and_bitsandbytes_are_known_to_those_who_load_and_hold():
    for file in ROOT.rglob("*.py"):
        if file.name not in ("loading.py", "adapters.py", "quantization.py"):
            nodes = list(ast.walk(ast.parse(file.read_text())))
            names = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
            names += [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
            assert not any(name.startswith(("peft", "bitsandbytes")) for name in names), file


def test_an_import_says_nothing():
    done = subprocess.run([sys.executable, "-c", "import lit_tr"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
