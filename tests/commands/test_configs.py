import inspect
import re
from pathlib import Path

import pytest
import yaml
from jsonargparse import Namespace

from lit_tr import losses
from lit_tr.commands import configs, iterate, main
from lit_tr.commands.fit import configured
from lit_tr.evaluation.judges import EvaluationRows, JudgeReward, SelfReference
from tests.runs import fails, metrics

FOLDER = Path(__file__).parents[2] / "configs"
NAMES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))
MODELS = [name for name in NAMES if name.startswith("models/")]
LOSSES = [name for name in NAMES if name.startswith("losses/")]
METHODS = {"methods/nf4": ("nf4", True, "AdapterReference"), "methods/lora": (None, True, "AdapterReference")}
METHODS["methods/full"] = (None, False, "CopyReference")


def test_all_that_ship_are_listed_with_what_they_are(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    assert all(len(line.split()) > 3 for line in lines)
    assert all(line.endswith(".") and "The same" not in line for line in lines)


def test_a_list_keeps_within_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    main(["configs"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines if line[0] != " "] == NAMES


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


@pytest.fixture(scope="module")
def parser():
    return configured(["--config=quickstart"]).parser


def loss_of(name):
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())["model"]["loss"]


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_goes_over_the_quickstart(parser, name):
    config = parser.parse_args(configs.with_shipped(["--config=quickstart", f"--config={name}"]))
    module = parser.instantiate(Namespace(model=config.model, data=config.data)).model
    assert f"lit_tr.losses.{type(module.loss).__name__}" == loss_of(name)["class_path"]
    for option, value in loss_of(name).get("init_args", {}).items():
        found = getattr(module.loss, option)
        assert isinstance(value, list) or value in (found, type(found).__name__)
    assert (config["update"] is None) == (module.reference is None) == (not module.loss.needs_reference)


def test_each_loss_has_a_configuration():
    kinds = [one for one in vars(losses).values() if inspect.isclass(one) and issubclass(one, losses.Loss)]
    named = {one.__name__ for one in kinds if not inspect.isabstract(one)}
    assert {loss_of(name)["class_path"].rpartition(".")[2] for name in LOSSES} == named


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_trains_two_steps_of_the_quickstart(name, tmp_path):
    small = ["--data.train.size=8", "--data.batch_size=4", "--data.val=null", "--trainer.callbacks=null"]
    steps = ["--trainer.max_steps=2", "--trainer.log_every_n_steps=1", "--trainer.val_check_interval=null"]
    main(["fit", "--config=quickstart", f"--config={name}", f"--trainer.default_root_dir={tmp_path}", *small, *steps])
    assert len([row for row in metrics(tmp_path) if row.get("train/loss")]) == 2


@pytest.mark.parametrize("name", [name for name in NAMES if "/" in name and not name.startswith("data/")])
def test_the_command_in_an_overlays_head_names_what_ships(name):
    for command in re.findall("^#   lit-tr fit (.*)", (FOLDER / f"{name}.yaml").read_text(), re.MULTILINE):
        named = re.findall(r"--config (\S+)", command)
        assert name in named
        assert {*named} <= {*NAMES}


def rounds(*names):
    made = iterate.parser()
    return made.instantiate(made.parse_args(configs.with_shipped([f"--config={name}" for name in names])))


def test_self_rewarding_has_the_papers_settings(tmp_path):
    options = rounds("self_rewarding")
    sampling, reward, instruct = options.sampling, options.reward, options.instruct
    assert (options.rounds, sampling.samples, sampling.temperature, sampling.top_p) == (3, 4, 0.7, 0.9)
    assert type(reward) is JudgeReward
    assert (reward.path, reward.prompt, reward.judgements, reward.temperature, reward.top_p) == (
        *("{policy}", "additive", 3, 0.7, 0.9),
    )
    assert (reward.lowest, reward.highest) == (0, 5)
    assert (instruct.policy, instruct.shots, instruct.temperature, instruct.top_p) == ("{base}", 8, 0.6, 0.9)
    assert options.stop.length == 2
    made = {}
    for name, rows in (("fit", {"train": "pairs.jsonl"}), ("warm_up", {})):
        config = options[name] | {"data": options[name]["data"] | rows}
        (tmp_path / "fit.yaml").write_text(yaml.safe_dump(config))
        made[name] = configured(["--config", str(tmp_path / "fit.yaml")])
    fit, warm_up = made["fit"].model, made["warm_up"].model
    assert (type(fit.loss).__name__, fit.loss.beta, type(fit.reference).__name__) == ("DPO", 0.1, "FrozenReference")
    assert (type(warm_up.loss).__name__, warm_up.reference) == ("SFT", None)
    instructions, judgements = made["warm_up"].datamodule.sources["train"].sources
    assert (instructions.format, judgements.format) == (None, EvaluationRows(prompt=reward.prompt))


def test_the_self_reference_judge_goes_over_self_rewarding():
    assert type(rounds("self_rewarding", "iterate/self_reference").reward) is SelfReference
