import yaml

from lit_tr.commands import main
from tests.runs import fails


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


def test_data_has_one_verb(capsys):
    assert "lit-tr data inspect --config" in fails(capsys, "data", "look")
