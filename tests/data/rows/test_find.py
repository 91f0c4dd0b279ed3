import json

import datasets
import pytest
from datasets import config
from huggingface_hub import constants

from lit_tr.data import Rows
from lit_tr.errors import UserError

PAIRS = [{"prompt": f"p{i}", "chosen": f"c{i}", "rejected": f"r{i}"} for i in range(5)]
COMMIT = "a" * 40


class Pairs(datasets.GeneratorBasedBuilder):
    """Writes the cache of `datasets` as it does for a data set of the hub."""

    def _info(self):
        return datasets.DatasetInfo()

    def _split_generators(self, dl_manager):
        return [datasets.SplitGenerator(name, {"count": count}) for name, count in (("train", 5), ("test", 2))]

    def _generate_examples(self, count):
        yield from enumerate(PAIRS[:count])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Return the folder of the caches, which are empty."""
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def prompts(source):
    return [row["prompt"] for _, row in source.rows()]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def snapshot(folder, repository, commit):
    """Return the folder that a download into the hub's cache fills."""
    kept = folder / "hub" / f"datasets--{repository.replace('/', '--')}"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text(commit)
    return kept / "snapshots" / commit


def test_without_a_network_the_cache_of_datasets_is_read(cache):
    Pairs(
        cache_dir=cache / "datasets", repo_id="someone/Pairs", hash=COMMIT, dataset_name="pairs"
    ).download_and_prepare()
    assert prompts(Rows("someone/Pairs")) == ["p0", "p1", "p2", "p3", "p4"]
    assert prompts(Rows("someone/Pairs", "test[1:]", revision=COMMIT)) == ["p1"]
    with pytest.raises(UserError, match="someone/Pairs: there is no split 'dev'; known are test, train"):
        prompts(Rows("someone/Pairs", "dev"))
    with pytest.raises(UserError, match=f"the cache of `datasets` has revision {COMMIT} only"):
        prompts(Rows("someone/Pairs", revision="v2"))


def test_without_a_network_the_cache_of_the_hub_is_read(cache):
    folder = snapshot(cache, "someone/files", COMMIT)
    write(folder / "train-0.jsonl", PAIRS[:3])
    write(folder / "test-0.jsonl", PAIRS[3:])
    assert prompts(Rows("someone/files")) == ["p0", "p1", "p2"]
    assert prompts(Rows("someone/files", "test", revision=COMMIT)) == ["p3", "p4"]
    with pytest.raises(UserError, match="someone/files: no such file or folder, nor a data set of the hub or its cach"):
        prompts(Rows("someone/files", revision="v2"))
    with pytest.raises(UserError, match="BuilderConfig 'other' not found"):
        prompts(Rows("someone/files", name="other"))


def test_the_configurations_of_a_cached_data_set_are_told_apart(cache):
    folder = snapshot(cache, "someone/two", COMMIT)
    write(folder / "a" / "rows.jsonl", PAIRS[:1])
    write(folder / "b" / "rows.jsonl", PAIRS[1:])
    configs = "".join(f"- config_name: {name}\n  data_files: {name}/*.jsonl\n" for name in "ab")
    (folder / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    assert prompts(Rows("someone/two", name="b")) == ["p1", "p2", "p3", "p4"]
    with pytest.raises(UserError, match="Config name is missing"):
        prompts(Rows("someone/two"))


def test_what_save_to_disk_wrote_is_read(tmp_path):
    data = datasets.Dataset.from_list(PAIRS)
    data.save_to_disk(tmp_path / "one", num_shards=2)
    assert prompts(Rows(tmp_path / "one", "train[1:4]")) == ["p1", "p2", "p3"]
    datasets.DatasetDict(train=data.select([4, 0]), dev=data.select([2])).save_to_disk(tmp_path / "two")
    assert prompts(Rows(tmp_path / "two")) == ["p4", "p0"]
    assert prompts(Rows(tmp_path / "two", "dev")) == ["p2"]
    with pytest.raises(UserError, match="no split 'test'; known are dev, train"):
        prompts(Rows(tmp_path / "two", "test"))


def test_a_folder_behind_a_url_has_its_splits(tmp_path):
    for name, rows in {"train": PAIRS[:3], "test": PAIRS[3:]}.items():
        write(tmp_path / f"{name}.jsonl", rows)
    assert prompts(Rows(f"file://{tmp_path}")) == ["p0", "p1", "p2"]
    assert prompts(Rows(f"file://{tmp_path}", "test")) == ["p3", "p4"]


def test_home_and_patterns(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "a.jsonl", PAIRS[:2])
    write(tmp_path / "b.jsonl" / "c.jsonl", PAIRS[2:])
    assert prompts(Rows("~/a.jsonl")) == ["p0", "p1"]
    assert prompts(Rows("~/*.jsonl")) == ["p0", "p1"]  # a folder is no file
    assert prompts(Rows("~/**/*.jsonl")) == ["p0", "p1", "p2", "p3", "p4"]
    write(tmp_path / "d[1].jsonl", PAIRS[4:])
    assert prompts(Rows(tmp_path / "d[1].jsonl")) == ["p4"]


@pytest.mark.parametrize("name", ["train", "data", "org/name"])
def test_a_file_that_is_here_is_no_hub_id(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name, PAIRS)
    with pytest.raises(UserError, match="unknown kind of file ''"):
        prompts(Rows(name))


def test_a_hub_that_does_not_answer_is_one_message(cache, no_hub):
    with pytest.raises(UserError, match=f"^nobody/rows is no folder .* {no_hub} does not answer"):
        prompts(Rows("nobody/rows"))


def test_a_hub_that_does_not_answer_is_not_asked_for_what_is_in_the_cache_of_datasets(cache, no_hub):
    builder = Pairs(cache_dir=cache / "datasets", repo_id="someone/HisPairs", hash=COMMIT, dataset_name="HisPairs")
    builder.download_and_prepare()
    assert prompts(Rows("someone/HisPairs")) == [row["prompt"] for row in PAIRS[:5]]
