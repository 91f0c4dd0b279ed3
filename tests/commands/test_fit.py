import json
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger

from lit_tr.commands import LitTRCLI, main
from lit_tr.commands.configs import with_shipped
from lit_tr.commands.fit import configured
from lit_tr.commands.runs import run_loggers
from lit_tr.module import PreferenceModule
from tests.runs import folder, metrics

CONFIGS = [
    path
    for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
    if "lit-tr iterate" not in path.read_text()
]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_is_instantiated(path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lit-tr"])
    cli = LitTRCLI(
        run=False,
        args=[*commanded(path), "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1"],
    )
    assert cli.datamodule.given_tokenizer == cli.model.source.path


def commanded(path):
    """The --config options of the command in a config's head, which is the last of them."""
    command, *_ = re.findall("^#   lit-tr fit (.*)", path.read_text(), re.MULTILINE)
    options = command.split()
    assert options[-1] == path.stem
    return with_shipped(options)


def test_overlays_say_what_they_are_named_after(monkeypatch):
    configs = {path.stem: path for path in CONFIGS}
    monkeypatch.setattr(sys, "argv", ["lit-tr"])
    found = {}
    for name in ("qlora_1gpu", "qlora_ddp", "lora_fsdp2", "qlora_fsdp2", "full_fsdp2"):
        args = [*commanded(configs[name]), "--trainer.accelerator=cpu"]
        cli = LitTRCLI(run=False, args=args)
        source, strategy = cli.model.source, type(cli.trainer.strategy).__name__
        found[name] = (source.quantize, source.lora is not None, type(cli.model.reference).__name__, strategy)
    assert found == {
        "qlora_1gpu": ("nf4", True, "AdapterReference", "SingleDeviceStrategy"),
        "qlora_ddp": ("nf4", True, "AdapterReference", "DDPStrategy"),
        "lora_fsdp2": (None, True, "AdapterReference", "ModelParallelStrategy"),
        "qlora_fsdp2": ("nf4", True, "AdapterReference", "ModelParallelStrategy"),
        "full_fsdp2": (None, False, "CopyReference", "ModelParallelStrategy"),
    }


@pytest.mark.parametrize("name", ["hh_tr_dpo.yaml", "hh_tr_dpo_qlora.yaml"])
def test_hh_configs_train_another_model_on_a_file_by_overrides_alone(name, llama_dir, write_rows, tmp_path):
    start = "\n\nHuman: Tell me about a cold river.\n\nAssistant:"
    rows = [{"chosen": f"{start} It is icy {i}.", "rejected": f"{start} It is hot {i}."} for i in range(12)]
    rows.append({"chosen": "no dialogue", "rejected": "none"})  # left out
    path = write_rows(rows)
    main(
        [
            "fit",
            f"--config=configs/{name}",
            f"--model.policy.path={llama_dir}",
            f"--data.train.path={path}",
            "--data.train.split=train[4:]",
            f"--data.val.path={path}",
            "--data.val.split=train[:4]",
            "--data.max_length=128",
            "--data.max_bad_rows=1",
            "--update.every_n_steps=1",
            "--trainer.max_steps=2",
            "--trainer.val_check_interval=2",
            "--trainer.log_every_n_steps=1",
            f"--trainer.default_root_dir={tmp_path}",
        ]
    )
    rows = metrics(tmp_path)
    losses = [float(row["train/loss"]) for row in rows if row.get("train/loss")]
    assert losses[0] == pytest.approx(0.693147, abs=1e-3)  # bfloat16
    assert [row["reference/updates"] for row in rows if row.get("reference/updates")] == ["1.0", "2.0"]
    assert any(row.get("val/initial/rewards/margins") for row in rows)


def test_fit_leaves_metrics_config_and_checkpoint(config, tmp_path):
    main(["fit", "--config", config])
    run = folder(tmp_path / "run")
    losses = [float(row["train/loss"]) for row in metrics(tmp_path / "run") if row.get("train/loss")]
    assert len(losses) == 4
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["init_args"]["loss"]["init_args"]["beta"] == 0.1
    assert (run / "checkpoints" / "last.ckpt").exists()


def test_overrides_on_the_command_line(config, tmp_path, capsys):
    main(
        [
            "fit",
            f"--config={config}",
            "--model.loss=lit_tr.losses.KTO",
            "--model.loss.desirable_weight=2",
            "--update=lit_tr.HardReferenceUpdate",
            "--update.every_n_steps=1",
        ]
    )
    last = [row for row in metrics(tmp_path / "run") if row.get("reference/updates")][-1]
    assert float(last["reference/updates"]) == 4
    first = next(row for row in metrics(tmp_path / "run") if row.get("train/loss"))
    assert float(first["train/loss"]) == pytest.approx(
        (2 * 0.5 + 0.5) / 2
    )  # KTO of equal policies, desirable weighed twice


def test_plain_dpo_has_a_frozen_reference_and_no_update(config, tmp_path):
    main(["fit", f"--config={config}", "--update=null", "--model.reference=lit_tr.reference.FrozenReference"])
    assert all("reference/updates" not in row for row in metrics(tmp_path / "run"))


def test_the_checkpoint_builds_the_model_again(config, tmp_path):
    main(["fit", f"--config={config}"])
    path = next((tmp_path / "run").rglob("last.ckpt"))
    module = PreferenceModule.load_from_checkpoint(path)
    weights = torch.load(path, weights_only=True)["state_dict"]
    assert module.loss.beta == 0.1
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items() if name in weights)


@pytest.mark.parametrize(("verb", "prefix"), [("validate", "val"), ("test", "test")])
def test_evaluation_verbs(config, tmp_path, verb, prefix, capsys, llama_dir):
    main([verb, f"--config={config}"])
    assert f"{verb} evaluates the policy of {llama_dir} as it is, untrained" in capsys.readouterr().err
    (row,) = metrics(tmp_path / "run")
    assert float(row[f"{prefix}/loss"]) == pytest.approx(0.693147, abs=1e-5)


def test_predict_leaves_its_predictions(config, tmp_path):
    main(["predict", f"--config={config}"])
    lines = next((tmp_path / "run").rglob("predictions.0.jsonl")).read_text().splitlines()
    losses = [loss for line in lines for loss in json.loads(line)["loss"]]
    assert losses == pytest.approx([0.693147] * 16, abs=1e-5)


@pytest.mark.slow
def test_quickstart_raises_the_gold_reward(tmp_path):
    main(["fit", "--config=configs/quickstart.yaml", f"--trainer.default_root_dir={tmp_path}"])
    run = folder(tmp_path)
    report = json.loads((run / "report.json").read_text())
    errors = report["before"]["gold reward, standard error"] + report["after"]["gold reward, standard error"]
    assert report["after"]["gold reward"] > report["before"]["gold reward"] + 4 * errors
    assert report["after"]["preference accuracy"] > 0.6
    assert report["after"]["KL to the initial policy"] > 0
    assert report["reference updates"] == 8
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "metrics.csv").exists()


def test_an_evaluated_checkpoint_is_not_called_untrained(config, tmp_path, capsys):
    main(["fit", f"--config={config}", "--trainer.max_steps=1"])
    main(["validate", f"--config={config}", "--ckpt_path=last", "--data.val.init_args.size=4"])
    assert "untrained" not in capsys.readouterr().err


OWN = """
import lit_tr

class Mine(lit_tr.PreferenceModule):
    def __init__(self, bonus: float = 0.5, **kwargs):
        super().__init__(**kwargs)
        self.bonus = bonus
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Stand in a folder with a module of one's own, in own_module.py."""
    (tmp_path / "own_module.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "own_module", raising=False)


@pytest.mark.parametrize("where", ["option before", "option after", "yaml", "overlay", "saved"])
def test_a_subclass_is_taken_by_its_class_path(own, config, tmp_path, where, llama_dir):
    content = yaml.safe_load(Path(config).read_text())
    args = {
        "option before": ["--model=own_module.Mine", f"--config={config}"],
        "option after": [f"--config={config}", "--model=own_module.Mine"],
        "overlay": [f"--config={config}", "--config=overlay.yaml"],
    }.get(where, ["--config=own.yaml"])
    named = {"class_path": "own_module.Mine", "init_args": content["model"]}
    Path("own.yaml").write_text(yaml.dump({**content, "model": named}))
    Path("overlay.yaml").write_text(yaml.dump({"model": {"class_path": "own_module.Mine"}}))
    if where == "saved":
        main(["fit", *args, "--trainer.max_steps=1"])
        args = [f"--config={folder('run')}/config.yaml", "--trainer.max_steps=2"]
    main(["fit", *args, "--model.bonus=2", "--model.loss.beta=0.7", "--model.policy.compile=false"])
    path = max(Path("run").rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
    module = sys.modules["own_module"].Mine.load_from_checkpoint(path)
    assert type(module).__name__ == "Mine"
    assert (module.bonus, module.loss.beta, module.source.path) == (2.0, 0.7, llama_dir)


def test_the_saved_config_takes_dotted_options_and_overlays_without_a_class_path(config, tmp_path):
    main(["fit", f"--config={config}"])
    saved = folder(tmp_path / "run") / "config.yaml"
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(yaml.dump({"model": {"policy": {"lora": {"r": 3}}, "reference": "AdapterReference"}}))
    args = [f"--config={saved}", f"--config={overlay}", "--model.loss.beta=0.5", "--model.policy.path=elsewhere"]
    cli = configured(args)
    assert (cli.model.source.path, cli.model.source.lora.r, cli.model.loss.beta) == ("elsewhere", 3, 0.5)
    assert cli.datamodule.given_tokenizer == "elsewhere"


def test_kto_asks_for_kl_rows_whatever_class_the_module_is_of(own, config):
    for options in ([], ["--model=own_module.Mine"]):
        sys.path.append(".")
        cli = LitTRCLI(run=False, args=[f"--config={config}", *options, "--model.loss=KTO"])
        assert cli.datamodule.collator.mismatched


def test_a_schedule_that_goes_by_a_metric_names_it(config):
    schedule = ["--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau", "--model.lr_scheduler.monitor=val/loss"]
    cli = LitTRCLI(run=False, args=[f"--config={config}", *schedule, "--model.lr_scheduler.patience=3"])
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    made = cli.model.lr_scheduler(optimizer)
    assert (made.monitor, made.patience) == ("val/loss", 3)


class Tracker(Logger):
    """Keeps what it is given."""

    name, version, save_dir = "tracker", "0", "tracked"
    given = None

    def log_hyperparams(self, params):
        Tracker.given = params

    def log_metrics(self, metrics, step):
        """Keep none."""


def test_a_logger_alone_gets_the_configuration(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["fit", f"--config={config}", "--trainer.max_steps=1", f"--trainer.logger={__name__}.Tracker"])
    assert Tracker.given["model"]["init_args"]["loss"]["init_args"]["beta"] == 0.1


def test_csv_is_the_logger_that_is_there_already(tmp_path):
    first, *others = run_loggers(str(tmp_path), None, ["csv"])
    assert isinstance(first, CSVLogger)
    assert others == []
    assert configured(["--config=quickstart", "--logger=csv"]).config.logger == "csv"
