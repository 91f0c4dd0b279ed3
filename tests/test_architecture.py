"""Imports point one way, and who uses a reference names no kind of it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from lit_tr import reference

ROOT = Path(__file__).parents[1] / "lit_tr"
KNOWS = {  # what a room may import of lit_tr, from the bottom to the top
    "errors": set(),
    "warned": set(),
    "lazy": set(),
    "hparams": {"errors"},
    "progress": set(),
    "step_mean": {"policy"},
    "speed": set(),
    "embedded": {"embedded", "data", "errors"},
    "data": {"data", "embedded.model", "console.counted", "errors"},
    "loading": {"data.batches", "errors", "progress"},
    "kept": {"data.batches"},
    "policy": {
        *("lazy", "policy", "embedded.model", "errors"),
        *("data.batches", "data.groups", "data.collator", "data.tokenization"),
    },
    "reference": {
        *("lazy", "reference", "policy", "loading", "kept", "errors", "embedded.model", "data.batches"),
        *("data.tokenization", "console.counted"),
    },
    "losses": {"losses", "errors"},
    "metrics": {"losses"},
    "checkpoints": {"errors", "warned"},
    "restored": {"checkpoints", "hparams", "losses", "policy", "reference.base", "errors"},
    "scoring": {"reference", "policy", "data.batches", "losses", "metrics", "errors", "warned"},
    "checks": {"reference", "policy", "losses", "errors", "warned"},
    "holder": {"reference", "policy"},
    "resume": {"holder", "policy", "progress", "errors"},
    "updates": {"updates", "reference.averaging", "reference.precision", "errors"},
    "module": {
        *("console", "reference", "policy", "data.batches", "losses", "metrics", "errors"),
        *("checks", "holder", "hparams", "loading", "progress", "resume", "scoring", "speed", "step_mean", "warned"),
    },
    "rewards": {
        *("rewards", "lazy", "data.example", "data.batches", "embedded.model", "embedded.task", "errors"),
        *("losses", "metrics", "module", "policy", "reference", "warned"),  # what trains a reward model
    },
    "evaluation": {
        *("evaluation", "rewards", "policy", "data", "losses", "metrics", "updates", "errors"),
        *("checkpoints", "restored", "embedded.model", "console.counted"),
    },
    "iteration": {
        *("iteration", "lazy", "evaluation", "rewards", "policy.loading", "data.example", "data.rows", "errors"),
    },
    "planning": {"planning", "reference", "policy", "data", "module", "errors"},
    "console": {"console", "lazy", "policy.sharding", "progress", "reference.base"},
    "commands": {
        *(
            "checkpoints",
            "commands",
            "console",
            "evaluation",
            "iteration",
            "rewards",
            "losses",
            "planning",
            "module",
            "updates",
            "reference",
            "policy",
            "data",
            "embedded",
            "errors",
            "evaluation",
        ),
        *("hparams", "ignore_expected_warnings", "lazy", "progress", "restored"),
    },
    "__init__": {"lazy", "module", "updates", "data.datamodule"},
}
KINDS = {name for name in reference.__all__ if name.endswith("Reference") and name != "Reference"}
NAMES_NO_KIND = ("module", "updates", "checks", "resume", "scoring", "loading", "planning", "commands")
NAMED = {("module", "FrozenReference")}
"""What may be named all the same: the module keeps the initial policy."""


def files_of(room):
    return [ROOT / f"{room}.py"] if (ROOT / f"{room}.py").exists() else list((ROOT / room).rglob("*.py"))


def imports(file):
    """Yield what a file imports of lit_tr: modules, and rooms that stand in `from lit_tr import room`."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "lit_tr":
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("lit_tr."):
            yield node.module.removeprefix("lit_tr.")
        elif isinstance(node, ast.Import):
            yield from (name.name.removeprefix("lit_tr.") for name in node.names if name.name.startswith("lit_tr"))


def names(file):
    """Yield the names in a file's code and imports; what stands in texts alone is none."""
    for node in ast.walk(ast.parse(file.read_text())):
        yield from (getattr(node, field, None) for field in ("id", "attr"))
        if isinstance(node, ast.alias):
            yield node.name


@pytest.mark.parametrize("room", KNOWS)
def test_imports_point_one_way(room):
    files = files_of(room)
    assert files
    for file in files:
        for name in imports(file):
            assert any(name == known or name.startswith(f"{known}.") for known in KNOWS[room]), f"{file.name}: {name}"


def test_each_room_is_in_the_plan():
    found = {path.stem for path in ROOT.glob("*.py")} | {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert found - {"__main__"} == set(KNOWS)


@pytest.mark.parametrize("room", NAMES_NO_KIND)
def test_who_uses_a_reference_names_no_kind_of_it(room):
    found = {(file.name, name) for file in files_of(room) for name in names(file) if name in KINDS}
    assert {(Path(file).stem, name) for file, name in found} - NAMED == set()


def test_kinds_of_references_are_found_by_name():
    assert {"FrozenReference", "CopyReference", "AdapterReference", "WindowReference"} <= KINDS
    assert set(names(ROOT / "reference" / "__init__.py")) >= KINDS


BELOW_DATA = ("errors", "embedded.model", "console.counted")
DATA = {  # the same within data/, from the bottom to the top
    "example": set(),
    "formats": {"example", "formats"},
    "rows": {"example", "formats", "rows"},
    "chat": {"example"},
    "tokenization": {"example", "chat"},
    "truncation": {"example", "chat", "tokenization"},
    "process": {"example", "chat", "formats", "rows", "tokenization", "truncation"},
    "transfer": set(),
    "groups": {"transfer"},
    "batches": {"groups", "transfer"},
    "packing": set(),
    "bad_rows": set(),
    "collator": {"batches", "tokenization"},
    "build": {"bad_rows", "process", "rows", "tokenization"},
    "cache": {"bad_rows", "build", "collator", "packing", "process", "rows", "tokenization"},
    "loading": {"batches", "cache", "collator"},
    "stream": {"bad_rows", "batches", "collator", "packing", "process", "rows", "tokenization"},
}


@pytest.mark.parametrize("room", DATA)
def test_imports_within_the_data_point_one_way(room):
    for file in files_of(f"data/{room}"):
        for name in imports(file):
            assert name in BELOW_DATA or name.split(".")[1] in DATA[room], f"{file.name}: {name}"


def test_peft_and_bitsandbytes_are_known_to_those_who_load_and_hold():
    for file in ROOT.rglob("*.py"):
        if file not in {ROOT / "policy" / name for name in ("loading.py", "adapters.py", "quantization.py")}:
            nodes = list(ast.walk(ast.parse(file.read_text())))
            found = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
            found += [name.name for node in nodes if isinstance(node, ast.Import) for name in node.names]
            assert not any(name.startswith(("peft", "bitsandbytes")) for name in found), file


IMPORTS = """
import sys
from lit_tr.commands import main
main(["--help"])
assert "torch" not in sys.modules
import lightning.pytorch
brought = {*sys.modules}
from lit_tr import SoftReferenceUpdate
print(*sorted({name.partition(".")[0] for name in {*sys.modules} - brought} - sys.stdlib_module_names))
from lit_tr import PreferenceDataModule, PreferenceModule
"""


def test_imports_say_nothing_and_an_update_brings_nothing_that_lightning_does_not():
    done = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    *usage, brought = done.stdout.splitlines()
    assert usage[-1].endswith("prints the version.")
    assert brought in ("lit_tr", "lit_tr torch")
