import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lit_tr.commands import LitTRCLI, main
from lit_tr.commands.checkpoints import whole_checkpoints
from lit_tr.data import PreferenceDataModule
from lit_tr.module import PreferenceModule
from tests.runs import metrics

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))


def fails(capsys, *args):
    """Run lit-tr with a mistake; return its one message."""
    with pytest.raises(SystemExit) as stopped:
        main(list(args))
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_config_is_instantiated(path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lit-tr"])
    cli = LitTRCLI(
        PreferenceModule,
        PreferenceDataModule,
        auto_configure_optimizers=False,
        run=False,
        args=[*commanded(path), "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.num_nodes=1"],
    )
    assert cli.datamodule.tokenizer_path == cli.model.source.path


def commanded(path):
    """The --config options of the command in a config's head, which is the last of them."""
    command, *_ = re.findall("^#   lit-tr fit (.*)", path.read_text(), re.MULTILINE)
    options = command.split()
    assert options[-1] == f"configs/{path.name}"
    return [option.replace("configs/", f"{path.parent}/") for option in options]


def test_overlays_say_what_they_are_named_after(monkeypatch):
    configs = {path.stem: path for path in CONFIGS}
    monkeypatch.setattr(sys, "argv", ["lit-tr"])
    found = {}
    for name in ("qlora_1gpu", "qlora_ddp", "lora_fsdp2", "qlora_fsdp2", "full_fsdp2"):
        args = [*commanded(configs[name]), "--trainer.accelerator=cpu"]
        cli = LitTRCLI(PreferenceModule, PreferenceDataModule, auto_configure_optimizers=False, run=False, args=args)
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
    rows.append({"chosen": "no dialogue", "rejected": "none"})  # skipped
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
    assert any(row.get("val/initial/rewards/margin") for row in rows)


def test_fit_leaves_metrics_config_and_checkpoint(config, tmp_path):
    main(["fit", "--config", config])
    run = tmp_path / "run" / "lightning_logs" / "version_0"
    losses = [float(row["train/loss"]) for row in metrics(tmp_path / "run") if row.get("train/loss")]
    assert len(losses) == 4
    assert losses[0] == pytest.approx(0.693147, abs=1e-5)
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["loss"]["init_args"]["beta"] == 0.1
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


@pytest.mark.parametrize("stop", [3, 4, 6])
@pytest.mark.parametrize("window", [False, True])
def test_ckpt_path_last_goes_on(config, tmp_path, stop, window):
    """In the middle of the first and second epoch of 4 shuffled batches, and between them."""
    hard = ["--update=HardReferenceUpdate", "--update.every_n_steps=5", "--model.reference=WindowReference"]
    options = [f"--config={config}", *(hard if window else [])]
    main(["fit", *options, "--trainer.max_steps=9", f"--trainer.default_root_dir={tmp_path / 'whole'}"])
    main(["fit", *options, f"--trainer.max_steps={stop}"])
    main(["fit", *options, "--trainer.max_steps=9", "--ckpt_path=last"])
    whole = [row["train/loss"] for row in metrics(tmp_path / "whole") if row.get("train/loss")]
    resumed = [row["train/loss"] for row in metrics(tmp_path / "run", version=1) if row.get("train/loss")]
    assert resumed == whole[stop:]


def test_a_checkpoint_that_was_cut_short_is_passed_over(config, tmp_path, capsys):
    main(["fit", f"--config={config}", "--trainer.max_steps=3"])
    whole = next((tmp_path / "run").rglob("last.ckpt"))
    torn = whole.parent / "torn.ckpt"
    torn.write_bytes(whole.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="torn.ckpt was cut short"):
        main(["fit", f"--config={config}", "--trainer.max_steps=5", "--ckpt_path=last"])
    assert int(metrics(tmp_path / "run", version=1)[-1]["step"]) == 4
    assert "was cut short" in fails(capsys, "fit", f"--config={config}", f"--ckpt_path={torn}")


def test_a_folder_of_shards_that_was_cut_short_is_passed_over(tmp_path):
    def written(path, times):
        path.mkdir()
        for name, time in times.items():
            (path / name).touch()
            os.utime(path / name, (time, time))
        os.utime(path, (max(times.values()),) * 2)

    whole = {"__0_0.distcp": 100, "__1_0.distcp": 101, ".metadata": 102, "meta.pt": 103}
    written(tmp_path / "whole.ckpt", whole)
    written(tmp_path / "first.ckpt", {"__0_0.distcp": 200})
    written(tmp_path / "again.ckpt", {**whole, "__0_0.distcp": 300})  # killed when it was written over
    written(tmp_path / "late.ckpt", {**whole, "__0_0.distcp": 300, "__1_0.distcp": 301, ".metadata": 302})
    with pytest.warns(UserWarning, match="was cut short"):
        assert [*whole_checkpoints(tmp_path)] == [tmp_path / "whole.ckpt"]


def test_a_config_that_contradicts_the_checkpoint_is_named(config, tmp_path):
    main(["fit", f"--config={config}"])
    with pytest.warns(
        UserWarning, match=r"model.loss.init_args.beta: the configuration says 0.7, and the checkpoint's 0.1"
    ):
        main(["fit", f"--config={config}", "--model.loss.beta=0.7", "--ckpt_path=last"])


def test_the_checkpoint_builds_the_model_again(config, tmp_path):
    main(["fit", f"--config={config}"])
    path = next((tmp_path / "run").rglob("last.ckpt"))
    module = PreferenceModule.load_from_checkpoint(path)
    weights = torch.load(path, weights_only=True)["state_dict"]
    assert module.loss.beta == 0.1
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items() if name in weights)


@pytest.mark.parametrize(("verb", "prefix"), [("validate", "val"), ("test", "test")])
def test_evaluation_verbs(config, tmp_path, verb, prefix):
    main([verb, f"--config={config}"])
    (row,) = metrics(tmp_path / "run")
    assert float(row[f"{prefix}/loss"]) == pytest.approx(0.693147, abs=1e-5)


def test_predict_leaves_its_predictions(config, tmp_path):
    main(["predict", f"--config={config}"])
    lines = next((tmp_path / "run").rglob("predictions.0.jsonl")).read_text().splitlines()
    losses = [loss for line in lines for loss in json.loads(line)["loss"]]
    assert losses == pytest.approx([0.693147] * 16, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.train.class_path=lit_tr.data.Rows", "--data.train.path=none.jsonl"], "none.jsonl: no such file"),
        (["--model.policy.path=nobody/nothing"], "nobody/nothing: no"),
        (["--model.reference=lit_tr.reference.AdapterReference"], "AdapterReference needs a policy with an adapter"),
        (
            ["--model.reference=lit_tr.reference.WindowReference"],
            "one HardReferenceUpdate, not with SoftReferenceUpdate",
        ),
        (
            ["--model.reference=WindowReference", "--update=null"],
            "not with no update of the reference",
        ),
        (["--update.alpha=1.5"], "alpha must be in (0, 1]"),
        (["--update.every_n_steps=0"], "every_n_steps must be at least 1"),
        (["--model.loss.beta=-1"], "beta must be above 0"),
        (["--data.format=lit_tr.data.formats.nothing"], "data.format"),
        (["--model.loss=nothing"], "model.loss"),
        (["--data.on_bad_row=maybe"], "on_bad_row"),
        (["--data.max_length=8"], "leaves no room for a prompt"),
        (["--ckpt_path=last"], "there is no whole checkpoint below"),
        (["--ckpt_path=none.ckpt"], "none.ckpt"),
        (["--ckpt_path=README.md"], "README.md is no checkpoint"),
        (["--trainer.val_check_interval=1000"], "val_check_interval"),
        (["--trainer.strategy=nothing"], "strategy"),
        (["--model.optimizer.lr=-1"], "learning rate"),
        (["--model.policy.lora.r=0", "--model.reference=lit_tr.reference.AdapterReference"], "r must be at least 1"),
        (["--data.mismatched=true"], "mismatched"),
    ],
)
def test_mistakes_end_with_one_message_and_no_traceback(config, capsys, options, message):
    error = fails(capsys, "fit", f"--config={config}", *options)
    assert message in error
    assert "Traceback" not in error


def test_a_row_is_named_on_the_command_line(config, capsys, write_rows):
    path = write_rows(
        [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b", "rejected": "b"}]
    )
    error = fails(capsys, "fit", f"--config={config}", "--data.train=lit_tr.data.Rows", f"--data.train.path={path}")
    assert f"{path}, row 1: chosen and rejected are equal" in error


@pytest.mark.slow
def test_quickstart_raises_the_gold_reward(tmp_path):
    main(["fit", "--config=configs/quickstart.yaml", f"--trainer.default_root_dir={tmp_path}"])
    run = tmp_path / "lightning_logs" / "version_0"
    report = json.loads((run / "report.json").read_text())
    errors = report["before"]["gold reward, standard error"] + report["after"]["gold reward, standard error"]
    assert report["after"]["gold reward"] > report["before"]["gold reward"] + 4 * errors
    assert report["after"]["preference accuracy"] > 0.6
    assert report["after"]["KL to the initial policy"] > 0
    assert report["reference updates"] == 8
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "metrics.csv").exists()


def test_data_are_inspected_without_a_model(config, tmp_path, capsys, write_rows, tokenizer):
    rows = [{"prompt": f"River {i}?", "chosen": " Cold.", "rejected": " Hot." if i else ""} for i in range(5)]
    tokenizer.save_pretrained(tmp_path / "no_model")
    path = write_rows(rows)
    options = ["--model.policy.path", str(tmp_path / "no_model"), "--data.train", "Rows", "--data.train.path", path]
    main(["data", "inspect", "--config", config, *options, "--data.val", "null", "--examples", "1"])
    said = capsys.readouterr().out
    assert "5 rows: 4 kept, 1 bad" in said
    assert "[chosen] ⟦" in said
    assert "data.val" not in said
    assert (tmp_path / "run" / "lengths.train.png").exists()


def test_the_saved_config_of_a_run_can_be_inspected_and_nothing_but_data_is_made(config, tmp_path, capsys):
    main(["fit", "--config", config])
    saved = next((tmp_path / "run").rglob("config.yaml"))
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path / "logs")}}
    (tmp_path / "gpu.yaml").write_text(yaml.dump({"trainer": {"accelerator": "gpu", "devices": 8, "logger": logger}}))
    main(["data", "inspect", "--config", str(saved), "--config", str(tmp_path / "gpu.yaml"), "--output", str(tmp_path)])
    assert "16 rows: 16 kept, 0 bad" in capsys.readouterr().out
    assert not (tmp_path / "logs").exists()


def test_a_run_is_planned_without_weights(config, tmp_path, capsys, llama_dir, tokenizer, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    bare = tmp_path / "bare"
    tokenizer.save_pretrained(bare)
    (bare / "config.json").write_bytes((Path(llama_dir) / "config.json").read_bytes())
    options = ["--model.policy.path", str(bare), "--data.max_length", "32", "--memory", "5MB", "--flops", "1e9"]
    main(["plan", "--config", config, *options])
    said = capsys.readouterr().out
    assert "configured: CopyReference" in said
    assert "padded rows of 4 examples" in said
    assert "16 examples" in said
    assert "4 steps" in said
    assert "hours of training" in said
    assert not (tmp_path / "run").exists()


def test_plan_refuses_a_strategy_that_fit_refuses(config, capsys):
    assert "does not train under fsdp" in fails(capsys, "plan", "--config", config, "--trainer.strategy=fsdp")


def test_plan_of_shards_counts_what_loading_takes(config, capsys):
    strategy = "--trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy"
    main(["plan", "--config", config, strategy, "--devices=4", "--memory=1GB"])
    assert "while loading, before all weights are parted: 0.46 MB on each device" in capsys.readouterr().out


def test_plan_refuses_what_is_no_size(config, capsys):
    assert "write 80GiB, say" in fails(capsys, "plan", "--config", config, "--memory", "much")


def test_data_has_one_verb(capsys):
    assert "lit-tr data inspect --config" in fails(capsys, "data", "look")
