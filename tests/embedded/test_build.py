from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lit_tr.embedded import TINY, resolve
from lit_tr.embedded.build import train_model, train_tokenizer


def test_the_package_ships_at_most_4_mb():
    assert sum(file.stat().st_size for file in Path(resolve(TINY)).iterdir()) <= 4e6


def test_other_paths_are_left_alone():
    assert resolve("some/model") == "some/model"


def test_the_shipped_tokenizer_is_the_one_that_the_script_makes():
    shipped = AutoTokenizer.from_pretrained(resolve(TINY))
    assert train_tokenizer().get_vocab() == shipped.get_vocab()


@pytest.mark.slow
def test_the_script_trains_a_model_that_learns(capsys):
    train_model(train_tokenizer(), steps=101)
    first, last = (float(line.split()[-1]) for line in capsys.readouterr().out.splitlines())
    assert first > 6  # log(512) is 6.2
    assert last < 1.5
