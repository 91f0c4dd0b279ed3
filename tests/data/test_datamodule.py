import copy
import math
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser

from lit_tr import PreferenceDataModule
from lit_tr.data import Rows
from lit_tr.data.example import Example
from lit_tr.data.formats import Ranking, UltraFeedback, orca
from lit_tr.embedded import TINY, SyntheticPairs
from lit_tr.errors import UserError

GOOD = {"prompt": "Tell me about a cold river.", "chosen": " It is icy.", "rejected": " It is hot."}


def setup(path, stage="fit", format=None, **arguments):
    data = PreferenceDataModule(TINY, Rows(path, format=format), **{"max_bad_rows": 0, **arguments})
    data.setup(stage)
    return data


def test_batches_of_the_synthetic_task():
    data = PreferenceDataModule(TINY, SyntheticPairs(10), val=SyntheticPairs(3, seed=9), batch_size=4)
    data.setup("fit")
    assert [len(batch) for batch in data.train_dataloader()] == [4, 4, 2]
    assert [len(batch) for batch in data.val_dataloader()] == [3]


def test_training_is_shuffled_and_validation_is_not():
    data = PreferenceDataModule(TINY, SyntheticPairs(10), val=SyntheticPairs(3, seed=9))
    data.setup("fit")
    pairs = [sorted([*pair.chosen, *pair.rejected]) for pair in data.examples["val"]]
    assert [part for batch in data.val_dataloader() for part in _pairs(batch)] == pairs
    loader, again = data.train_dataloader(), data.train_dataloader()
    orders = [[batch.targets.tolist() for batch in loader] for _ in range(2)]
    assert orders[0] != orders[1]
    assert orders == [[batch.targets.tolist() for batch in again] for _ in range(2)]


def test_mismatched_rows_on_demand():
    data = PreferenceDataModule(TINY, SyntheticPairs(4), mismatched=True)
    data.setup("fit")
    assert next(iter(data.train_dataloader())).mismatched == 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected": None}, "row 1: no 'rejected'"),
        ({"rejected": ""}, "row 1: 'rejected' is an empty response"),
        ({"rejected": GOOD["chosen"]}, "row 1: chosen and rejected are equal"),
        ({"rejected": " icy" * 80}, "row 1: a response leaves no room for a prompt"),
    ],
)
def test_a_bad_row_is_named_before_training(write_rows, change, message):
    path = write_rows([GOOD, {**GOOD, **change}])
    with pytest.raises(UserError, match=f"{path}, {message}.*data.max_bad_rows"):
        setup(path, max_length=64)


def test_bad_rows_are_skipped_and_counted_where_asked(write_rows, caplog, monkeypatch):
    said = []
    monkeypatch.setattr("lit_tr.data.datamodule.rank_zero_info", said.append)
    bad = {**GOOD, "rejected": ""}
    data = setup(write_rows([bad, GOOD, bad, {**GOOD, "chosen": " It is hot."}]), max_bad_rows=9)
    assert len(data.examples["train"]) == 1
    assert said == [
        "data.train: left out 3 rows: 2 x 'rejected' is an empty response; 1 x chosen and rejected are equal"
    ]


@pytest.mark.parametrize("bad", [{"rejected": None}, {"prompt": None}])
def test_a_bad_first_row_does_not_decide_the_format(write_rows, bad):
    data = setup(write_rows([{**GOOD, **bad}, GOOD, GOOD]), max_bad_rows=9)
    assert len(data.examples["train"]) == 2


def test_ranks_train_on_rows_of_their_own(tmp_path):
    data = PreferenceDataModule(TINY, SyntheticPairs(8), batch_size=1)
    seen = []
    for rank in (0, 1):
        data.trainer = SimpleNamespace(world_size=2, global_rank=rank, log_dir=str(tmp_path))
        data.setup("fit")
        seen.append({tuple(batch.input_ids[0].tolist()) for batch in data.train_dataloader()})
    assert len(seen[0]) == len(seen[1]) == 4
    assert not seen[0] & seen[1]


@settings(deadline=None, max_examples=30)
@example(rows=1, ranks=3, batch_size=2)  # more ranks than rows
@example(rows=5, ranks=2, batch_size=2)  # rank 0 has a batch more
@given(rows=st.integers(1, 13), ranks=st.integers(1, 4), batch_size=st.integers(1, 5))
def test_evaluation_brings_each_row_once_and_as_many_batches_to_each_rank(rows, ranks, batch_size):
    data = PreferenceDataModule(TINY, SyntheticPairs(1), val=SyntheticPairs(rows, seed=9), batch_size=batch_size)
    data.setup("validate")
    expected = [sorted([*pair.chosen, *pair.rejected]) for pair in data.examples["val"]]
    counts, seen = set(), [[] for _ in range(rows)]
    for rank in range(ranks):
        data.trainer = SimpleNamespace(world_size=ranks, global_rank=rank)
        batches = list(data.val_dataloader())
        counts.add(len(batches))
        assert len(data.val_dataloader()) == len(batches)
        assert all(batch.dummy == (len(batch) == 0) for batch in batches)
        own = [part for batch in batches if not batch.dummy for part in _pairs(batch)]
        seen[rank::ranks] = own  # in the order of the source
    assert counts == {math.ceil(rows / (ranks * batch_size))}
    assert seen == expected


def _pairs(batch):
    """The response tokens of each pair, sorted."""
    parts = [part.tolist() for part in batch.targets.split(batch.lengths.tolist())]
    return [sorted(parts[i] + parts[batch.chosen + i]) for i in range(batch.chosen)]


def test_kto_with_one_row_a_batch_is_refused():
    with pytest.raises(UserError, match="batch_size must be at least 2"):
        PreferenceDataModule(TINY, SyntheticPairs(2), batch_size=1, mismatched=True)


def test_batches_by_tokens_are_even_and_hold_each_row_once():
    data = PreferenceDataModule(TINY, SyntheticPairs(100), val=SyntheticPairs(9, seed=9), max_tokens=400)
    data.setup("fit")
    loader, epochs = data.train_dataloader(), []
    for _ in range(2):
        batches = list(loader)
        tokens = [batch.input_ids.numel() for batch in batches]
        assert max(tokens) <= 400
        assert min(tokens) > 0.9 * max(tokens)
        assert len(batches) == len(loader) == -(-sum(tokens) // 400)  # no budget could do with fewer
        epochs.append([sorted(batch.targets.tolist()) for batch in batches])
        assert sum(len(batch) for batch in batches) == 100
    assert epochs[0] != epochs[1]
    assert sorted(epochs[0]) == sorted(epochs[1])  # the same packs in another order
    assert all(batch.input_ids.numel() <= 400 for batch in data.val_dataloader())


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 99), max_length=st.integers(40, 70))
def test_a_budget_holds_under_kto_where_a_borrowed_response_is_too_long(seed, max_length):
    pairs = SyntheticPairs(60, seed=seed)
    data = PreferenceDataModule(TINY, pairs, max_tokens=300, max_length=max_length, mismatched=True, max_bad_rows=60)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert max(batch.input_ids.numel() for batch in batches) <= 300
    assert max(int(batch.packing.positions.max()) for batch in batches) < max_length


def test_batches_by_tokens_count_borrowed_responses():
    data = PreferenceDataModule(TINY, SyntheticPairs(60), max_tokens=400, mismatched=True)
    data.setup("fit")
    batches = list(data.train_dataloader())
    assert 300 < max(batch.input_ids.numel() for batch in batches) <= 400
    assert any(batch.mismatched for batch in batches)


def test_a_row_past_the_budget_is_a_bad_row(write_rows):
    with pytest.raises(UserError, match="row 0: the example passes max_tokens .*, max_tokens 10"):
        setup(write_rows([GOOD]), max_tokens=10)


@pytest.mark.parametrize("arguments", [{"batch_size": 4, "max_tokens": 100}, {"max_tokens": 100, "packed": False}])
def test_a_budget_goes_without_batch_size_and_with_packs(arguments):
    with pytest.raises(UserError, match="max_tokens"):
        PreferenceDataModule(TINY, SyntheticPairs(2), **arguments)


def test_truncated_prompts_are_counted(write_rows, monkeypatch):
    said = []
    monkeypatch.setattr("lit_tr.data.datamodule.rank_zero_info", said.append)
    data = setup(write_rows([GOOD, {**GOOD, "prompt": "cold " * 70}]), max_length=32)
    assert len(data.examples["train"][1].prompt) == 32 - max(map(len, data.examples["train"][1].responses))
    assert "truncated 1 prompts on the left" in said[0]


def test_a_prompt_that_may_not_be_truncated_is_a_bad_row(write_rows):
    with pytest.raises(UserError, match="row 0: the prompt is too long"):
        setup(write_rows([{**GOOD, "prompt": "cold " * 70}]), max_length=32, truncate_prompts=False)


def test_nothing_left_is_an_error(write_rows):
    with pytest.raises(UserError, match="has no rows to train on"):
        setup(write_rows([{**GOOD, "rejected": ""}]), max_bad_rows=9)


def test_unknown_format_names_file_and_keys(write_rows):
    with pytest.raises(UserError, match=r"rows.jsonl, row 0: unknown format .the columns are question"):
        setup(write_rows([{"question": "a"}]))


def test_a_format_of_ones_own(write_rows):
    data = setup(write_rows([{"question": "cold"}]), format=lambda row: Example(row["question"], " yes", " no"))
    assert data.tokenizer.decode(data.examples["train"][0].prompt) == "cold"


def test_a_row_may_make_several_pairs(write_rows):
    row = {"prompt": "cold", "responses": [" icy", " warm", " hot"], "ranks": [1, 2, 3]}
    data = setup(write_rows([row, row]), format=Ranking(pairs="all"), batch_size=6, shuffle=False)
    (batch,) = data.train_dataloader()
    assert len(batch) == 6
    assert batch.labels.margin.tolist() == [1, 2, 1] * 4  # of the chosen and of the rejected responses


def test_turns_are_scored_as_asked(write_rows, tmp_path, tokenizer):
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "chat")
    ask, *said = ({"role": "user", "content": "a"}, *({"role": "assistant", "content": text} for text in "bc"))
    rows = Rows(write_rows([{"chosen": [ask, said[0], ask, said[1]], "rejected": [ask, said[1], ask, said[1]]}]))
    lengths = []
    for turns in ("last", "all"):
        data = PreferenceDataModule(str(tmp_path / "chat"), rows, turns=turns)
        data.setup("fit")
        (batch,) = data.train_dataloader()
        lengths.append(batch.lengths.tolist())
    shorter, longer = lengths
    assert shorter[0] == shorter[1] == len(tokenizer("<assistant>c")["input_ids"]) + 1  # the end of sequence
    assert longer[0] == shorter[0] + len(tokenizer("<assistant>b")["input_ids"])


@pytest.mark.parametrize(
    ("given", "format"),
    [
        ("lit_tr.data.formats.orca", orca),
        ("lit_tr.data.formats.rated.Ranking", Ranking()),
        (
            {"class_path": "lit_tr.data.formats.rated.UltraFeedback", "init_args": {"pairs": "all"}},
            UltraFeedback(pairs="all"),
        ),
    ],
)
def test_formats_are_named_in_yaml(given, format):
    parser = ArgumentParser()
    parser.add_class_arguments(PreferenceDataModule, "data")
    train = {"class_path": "lit_tr.data.Rows", "init_args": {"path": "rows.jsonl", "format": given}}
    data = parser.instantiate(parser.parse_object({"data": {"tokenizer": TINY, "train": train}})).data
    assert data.sources["train"].format == format


def test_unknown_tokenizer_is_named():
    data = PreferenceDataModule("nobody/nothing", SyntheticPairs(2))
    with pytest.raises(UserError, match="nobody/nothing: no tokenizer"):
        data.setup("fit")


def test_a_stage_without_rows_says_what_to_give():
    with pytest.raises(UserError, match="give data.val"):
        PreferenceDataModule(TINY, SyntheticPairs(2)).setup("validate")


@pytest.mark.parametrize(
    "arguments",
    [
        {"batch_size": 0},
        {"max_tokens": 0},
        {"max_length": 2},
        {"num_workers": -1},
        {"max_bad_rows": -0.1},
        {"processes": 0},
        {"turns": "first"},
    ],
)
def test_bad_arguments_are_named(arguments):
    with pytest.raises(UserError, match=next(iter(arguments))):
        PreferenceDataModule(TINY, SyntheticPairs(2), **arguments)
