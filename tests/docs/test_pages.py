"""What the pages show is true: blocks run or are parsed, and what they name exists."""

import inspect
import re
from pkgutil import resolve_name

import pytest
import yaml
from lightning.pytorch import Trainer

from lit_tr import PreferenceDataModule, PreferenceModule
from lit_tr.commands import data, export, generate, iterate, score
from lit_tr.commands.configs import shipped, with_shipped
from lit_tr.commands.fit import DataCLI
from lit_tr.commands.main import VERBS
from lit_tr.data.formats import FORMATS
from lit_tr.policy import PretrainedPolicy
from tests.docs.pages import PAGES, PLACEHOLDERS, ROOT, blocks, commands, name, spans

SMALL = "HuggingFaceTB/SmolLM2-135M-Instruct"
OPTIONS = {
    "data": PreferenceDataModule,
    "trainer": Trainer,
    "model.policy": PretrainedPolicy,
    "model": PreferenceModule,
}
FILE = re.compile(r"(?:configs|tests|docs|notebooks|lit_tr)/[\w/]+\.(?:yaml|py|md|ipynb)")


def python(page):
    return "".join(blocks(page, "python"))


def as_run(page):
    slow = [pytest.mark.slow] if ".fit(" in python(page) else []
    return pytest.param(page, marks=slow, id=name(page))


@pytest.mark.parametrize("page", [as_run(page) for page in PAGES if python(page)])
def test_python_runs_from_the_top_of_a_page_to_its_end(page, llama_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = python(page).replace(SMALL, llama_dir).replace("Trainer(", 'Trainer(accelerator="cpu", ')
    exec(compile(code, str(page), "exec"), {"__name__": "page"})


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_python_compiles(page):
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


@pytest.fixture(scope="module")
def parser():
    return DataCLI(
        run=False, save_config_callback=None, args=["--config", str(ROOT / "configs/quickstart.yaml")]
    ).parser


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "yaml")], ids=name)
def test_yaml_is_what_fit_takes(page, parser, tmp_path):
    for number, block in enumerate(blocks(page, "yaml")):
        file = tmp_path / f"{number}.yaml"
        file.write_text(block)
        found = parser.parse_args(["--config", str(ROOT / "configs/hh_tr_dpo.yaml"), "--config", str(file)])
        assert all(found[option] is not None for option in yaml.safe_load(block))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=name)
def test_commands_are_parsed(page, parser, monkeypatch):
    monkeypatch.chdir(ROOT)
    for verb, *words in commands(page):
        words = [PLACEHOLDERS.get(word, word) for word in words]
        if verb in ("fit", "validate", "test", "predict", "plan"):
            owned = ("--memory", "--devices", "--flops", "--rows") if verb == "plan" else ()
            kept = [one for before, one in zip(["", *words], words, strict=False) if not {before, one} & {*owned}]
            assert parser.parse_args(with_shipped(kept)).model
        elif verb in ("generate", "export", "score", "iterate"):
            assert (
                {"generate": generate, "export": export, "score": score, "iterate": iterate}[verb]
                .parser()
                .parse_args(with_shipped(words))
            )
        elif (verb, *words[:1]) == ("data", "inspect"):
            assert data.parser().parse_args(with_shipped(words[1:]))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_name_verbs_files_and_options_that_exist(page):
    for verb, *words in commands(page):
        assert verb in VERBS
        assert verb != "data" or words[0] in data.VERBS
        configs = [one for before, one in zip(words, words[1:], strict=False) if before == "--config"]
        assert all(config in PLACEHOLDERS or shipped(config) for config in configs)
        if verb == "export":
            given = {word.removeprefix("--").partition(".")[0] for word in words if word.startswith("--")}
            added = re.findall(r'"--(\w+)"', inspect.getsource(export.parser))
            assert given <= {*inspect.signature(export.export).parameters, *added}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_files_exist(page):
    missing = [file for file in FILE.findall(page.read_text()) if not (ROOT / file).is_file()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_scripts_have_the_options_that_pages_give_them(page):
    for span in [*spans(page), *"".join(blocks(page, "bash")).splitlines()]:
        if found := re.match(r"python (\S+\.py)(.*)", span):
            source = (ROOT / found[1]).read_text()
            assert all(f'"{option}"' in source for option in re.findall(r"--[\w-]+", found[2])), span


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_objects_and_options_exist(page):
    for span in spans(page):
        if re.fullmatch(r"lit_tr(\.\w+)+", span):
            resolve_name(span)
        if found := re.match(r"(?:--)?(data|trainer|model\.policy|model)\.(\w+)(?![\w.(/*])", span):
            known = set(inspect.signature(OPTIONS[found[1]]).parameters)
            assert found[2] in known or span.startswith(("data.train.", "model.")), span


def test_the_table_of_formats_is_that_of_the_code():
    page = (ROOT / "docs/api/formats.md").read_text()
    shown = re.findall(r"^\| (`.+`) \| \[`(\w+)`\]", page, re.MULTILINE)
    assert shown == [(", ".join(f"`{column}`" for column in one.columns), one.name) for one in FORMATS]


def test_each_shipped_loss_is_a_row_of_the_papers_with_the_figures_of_its_guide():
    guide, papers = ((ROOT / "docs" / page).read_text() for page in ("guides/losses.md", "papers.md"))
    measured = re.findall(r"^\| `(\w+)` \| ([-\d.]+) ± .*?\| ([\d.]+) ± [\d.]+ \| \d+ \|", guide, re.MULTILINE)
    shown = re.findall(r"\n\| \*\*.*arxiv.*\| `losses/(\w+)`.* \| ([-\d.]+), ([\d.]+) \| [^|]+ \|", papers)
    assert {*measured} - {*shown} == {one for one in measured if one[0] == "sft"}  # which is no paper's
    assert len(shown) == len(measured) - 1 == len([*(ROOT / "configs/losses").glob("*.yaml")]) - 1
