import re
from pathlib import Path

import pytest

from lit_tr.commands import configs, main
from lit_tr.commands.fit import configured
from tests.runs import fails

FOLDER = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))
MODELS = [name for name in NAMES if name.startswith("models/")]
METHODS = {"methods/nf4": ("nf4", True, "AdapterReference"), "methods/lora": (None, True, "AdapterReference")}
METHODS["methods/full"] = (None, False, "CopyReference")


def test_all_that_ship_are_listed_with_what_they_are(capsys):
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(len(line.split()) > 3 for line in lines)


def test_one_is_shown_as_it_stands(capsys):
    main(["configs", "show", "quickstart"])
    assert capsys.readouterr().out == (FOLDER / "quickstart.yaml").read_text()


def test_one_that_is_not_there_is_told_the_nearest(capsys):
    assert "did you mean models/llama3_8b" in fails(capsys, "configs", "show", "models/lama3_8b")


def test_names_stand_for_files_and_files_for_themselves(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text("")
    given = ["--config", "quickstart", "--config=mine", "--config", "other.yaml", "--name", "quickstart"]
    assert configs.with_shipped(given) == [
        *("--config", str(FOLDER / "quickstart.yaml"), "--config=mine", "--config", "other.yaml"),
        *("--name", "quickstart"),
    ]


@pytest.mark.parametrize(
    ("model", "method"), [(model, "methods/nf4") for model in MODELS] + [(MODELS[0], m) for m in METHODS]
)
def test_models_and_methods_go_together(model, method):
    cli = configured([f"--config={name}" for name in ("base/tr_dpo", model, method)] + ["--data.train=pairs.jsonl"])
    source = cli.model.source
    assert (source.quantize, source.lora is not None, type(cli.model.reference).__name__) == METHODS[method]
    assert source.path in (FOLDER / f"{model}.yaml").read_text()
    assert cli.datamodule.given_tokenizer == source.path


@pytest.mark.parametrize(("name", "given"), [("tdpo1", {"beta": 0.1}), ("tdpo2", {"alpha": 0.5, "beta": 0.1})])
def test_losses_go_on_top(name, given):
    configs = ("base/tr_dpo", MODELS[0], "methods/nf4", f"losses/{name}")
    loss = configured([*(f"--config={one}" for one in configs), "--data.train=pairs.jsonl"]).model.loss
    assert type(loss).__name__ == name.upper()
    assert vars(loss) == given


@pytest.mark.parametrize("name", [name for name in NAMES if "/" in name and not name.startswith("data/")])
def test_the_command_in_an_overlays_head_names_what_ships(name):
    for command in re.findall("^#   lit-tr fit (.*)", (FOLDER / f"{name}.yaml").read_text(), re.MULTILINE):
        named = re.findall(r"--config (\S+)", command)
        assert name in named
        assert {*named} <= {*NAMES}
