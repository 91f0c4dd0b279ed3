import io
import json
import sys

import pytest
import yaml

from lit_tr.commands import main
from lit_tr.commands.data import OF_A_STREAM, data_module, parser
from lit_tr.data.formats import FORMATS
from lit_tr.embedded import TINY, resolve
from tests.runs import fails

PAIRS = [{"prompt": f"River {i}?", "chosen": " Cold and long.", "rejected": " Hot." if i else ""} for i in range(5)]


@pytest.fixture(autouse=True)
def narrow(monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


def inspected(capsys, *args):
    """Run `lit-tr data inspect`; return what it prints."""
    capsys.readouterr()
    main(["data", "inspect", *map(str, args), "--data.cache_dir", "cache"])
    return capsys.readouterr().out


def made(*args):
    """The data module of `lit-tr data inspect`."""
    return data_module(parser().parse_args(list(map(str, args))))


def test_a_file_and_a_tokenizer_are_enough(tmp_path, capsys, write_rows):
    write_rows(PAIRS)
    write_rows([PAIRS[1], {**PAIRS[1], "prompt": "Lake?"}], "val.jsonl")
    said = inspected(capsys, "rows.jsonl", "--tokenizer", resolve(TINY), "--data.val.path", "val.jsonl")
    train, val = said.split("data.val ─")
    assert "rows       5: 4 kept, 1 left out\n" in train
    assert "1 x 'rejected' is an empty response:\n             rows.jsonl, row 0\n" in train
    assert "fit        stops: more rows are left out than data.max_bad_rows 0.01 allows\n" in train
    assert "explicit_prompt, plain text (4 of the first 4 good rows)" in train
    assert "overlap" not in train
    assert "fit        takes these rows\n" in val
    assert "overlap    1 (a prompt of data.train too); first:\n             val.jsonl, row 0\n" in val
    assert train.count("¦⟪<|end|>⟫⟧\n") == 2 * 3  # both responses of three examples
    assert max(map(len, said.splitlines())) <= 80
    assert all((tmp_path / f"lengths.{name}.png").read_bytes().startswith(b"\x89PNG") for name in ("train", "val"))


def test_what_fit_would_leave_out_for_max_tokens_counts(capsys, write_rows):
    long = [{**PAIRS[1], "prompt": "River? " * 20}]
    path = write_rows(PAIRS[1:] + long)
    options = "--tokenizer", TINY, "--data.max_tokens", 40, "--examples", 0
    said = inspected(capsys, path, *options)
    assert "1 x the example passes max_tokens:" in said
    assert "fit        stops" in said
    assert "packs      2 of at most 40 tokens" in said
    assert "fit        takes these rows" in inspected(capsys, path, *options, "--data.max_bad_rows", 1)


def test_nothing_but_bad_rows(capsys, write_rows, tmp_path):
    said = inspected(capsys, write_rows(PAIRS[:1]), "--tokenizer", TINY, "--data.max_bad_rows", 1)
    assert "1: 0 kept, 1 left out" in said
    assert "fit        stops: no rows to train on" in said
    assert not list(tmp_path.glob("*.png"))


def test_the_options_of_fit_are_taken(config, llama_dir, tmp_path, capsys):
    loss = {"class_path": "lit_tr.losses.KTO", "init_args": {"beta": 0.1}}
    (tmp_path / "more.yaml").write_text(yaml.dump({"model": {"loss": loss}, "trainer": {"devices": 8}}))
    options = "--config", config, "--config", "more.yaml", "--trainer.accelerator", "gpu", "--data.batch_size", 8
    one = made(*options)
    assert (one.given_tokenizer, one.mismatched, one.batch_size) == (llama_dir, True, 8)
    assert "16: 16 kept, 0 left out" in inspected(capsys, *options)
    assert (tmp_path / "run" / "lengths.train.png").exists()
    assert not made("--config", config).mismatched
    parts = [{"class_path": "lit_tr.losses.DPO"}, loss]
    weighted = {"class_path": "lit_tr.losses.Weighted", "init_args": {"losses": parts}}
    (tmp_path / "more.yaml").write_text(yaml.dump({"model": {"loss": weighted}}))
    assert made("--config", config, "--config", "more.yaml").mismatched


def test_the_saved_config_of_a_run_is_taken(config, tmp_path, capsys):
    main(["fit", "--config", config, "--data.cache_dir", "cache"])
    saved = next((tmp_path / "run").rglob("config.yaml"))
    assert "16: 16 kept, 0 left out" in inspected(capsys, "--config", saved, "--output", "pictures")
    assert (tmp_path / "pictures" / "lengths.val.png").exists()


def test_a_path_replaces_that_of_the_config(config):
    assert made("other.jsonl", "--config", config).sources["train"].path == "other.jsonl"
    assert made("--data.train.path", "other.jsonl", "--tokenizer", TINY).sources["train"].path == "other.jsonl"


def test_the_first_rows_of_a_stream_are_shown(capsys, write_rows):
    path = write_rows(PAIRS[1:])
    options = path, "--tokenizer", TINY, "--data.buffer", 2
    assert made(*options).sources["train"].count == OF_A_STREAM
    assert f"the first {OF_A_STREAM:,} rows" in inspected(capsys, *options)
    assert "3: 3 kept, 0 left out" in inspected(capsys, *options, "--rows", 3)


def test_where_marks_cannot_be_written_their_numbers_are(write_rows, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    main(["data", "inspect", write_rows(PAIRS[1:]), "--tokenizer", TINY, "--data.cache_dir", "cache"])
    sys.stdout.flush()
    assert b"\\u27e6" in written.getvalue()


def test_mistakes_are_named(config, capsys):
    assert "`lit-tr data inspect` or `lit-tr data formats`" in fails(capsys, "data", "look")
    assert "no rows are given" in fails(capsys, "data", "inspect", "--tokenizer", TINY)
    assert "no tokenizer is given: `--tokenizer DIR`" in fails(capsys, "data", "inspect", "rows.jsonl")
    assert "--data.max_lenght" in fails(capsys, "data", "inspect", "--config", config, "--data.max_lenght", "3")


def test_formats_are_listed_with_rows_that_have_them(capsys):
    main(["data", "formats"])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    listed = said.strip().split("\n\n")
    assert len(listed) == len(FORMATS)
    for one, text in zip(FORMATS, listed, strict=True):
        head, _, row = text.partition("\n  {")
        assert " ".join(head.split()) == f"{one.name}: {', '.join(one.columns)} {one.meaning}"
        assert json.loads("{" + row) == one.row


def test_the_verbs_are_listed(capsys):
    main(["data", "--help"])
    assert "`lit-tr data inspect`" in capsys.readouterr().out
    main(["data"])
    assert "`lit-tr data formats`" in capsys.readouterr().out
