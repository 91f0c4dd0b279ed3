"""The pages say what is so: their Python runs, their YAML is parsed, what they name is there."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from lit_tr.commands.configs import FOLDER
from lit_tr.commands.fit import configured
from lit_tr.commands.main import VERBS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md")) + [ROOT / name for name in ("CONTRIBUTING.md", "llms.txt")]


def blocks(language):
    found = {path: re.findall(rf"```{language}\n(.*?)```", path.read_text(), re.DOTALL) for path in PAGES}
    return [pytest.param(block, id=f"{path.stem}{i}") for path, of in found.items() for i, block in enumerate(of)]


@pytest.mark.parametrize("block", blocks("python"))
def test_python_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pasted.py").write_text(block)  # a dataclass looks for its module
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "pasted", raising=False)
    __import__("pasted")


@pytest.mark.parametrize("block", blocks("yaml"))
def test_yaml_is_parsed(block, tmp_path):
    (tmp_path / "overlay.yaml").write_text(block)
    assert configured(["--config=quickstart", f"--config={tmp_path / 'overlay.yaml'}"]).model


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_what_is_named_is_there(path):
    text = path.read_text()
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert link.startswith("https://") or (path.parent / link).exists(), link
    for file in re.findall(r"(?:tests|configs|notebooks)/[\w/.-]+\.\w+", text):
        assert (ROOT / file).exists(), file
    for verb in re.findall(r"lit-tr (\w+)", text):
        assert verb in VERBS
    for name in re.findall(r"--config ([a-z][\w/.]*)", text):
        assert name.endswith((".yaml", "FOLDER")) or (FOLDER / f"{name}.yaml").exists(), name


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mkdocs") is None or find_spec("mkdocstrings") is None, reason="needs the extra docs")
def test_the_site_is_built_strictly(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    pages = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.html")}
    assert len(pages) > 20
    for path, page in pages.items():  # nothing is loaded from elsewhere
        assert not re.search(r'(?:src|href)="https?://[^"]+\.(?:js|css|woff2?)"', page), path
