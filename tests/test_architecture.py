"""Imports point one way."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "lit_tr"
KNOWS = {  # what a room may import of lit_tr
    "errors": set(),
    "losses": {"errors"},
    "metrics": {"losses"},
    "embedded": {"data.synthetic"},
    "data": {"data", "embedded", "errors"},
    "policy": {"policy", "embedded", "errors", "data.batches", "data.tokenization"},
    "interrupt": set(),
    "lookahead": {"errors"},
    "module": {"policy", "data.batches", "lookahead", "losses", "metrics", "errors"},
    "plan": {"policy", "data.batches", "data.tokenization", "errors"},
    "plan_report": {"plan", "policy", "data", "module", "errors"},
    "export": {"policy", "data.datamodule", "embedded", "errors"},
    "callbacks": {"policy.averaging", "errors"},
    "evaluation": {"evaluation", "policy", "data", "losses", "metrics", "callbacks", "errors"},
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
