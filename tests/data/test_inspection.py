import copy
import math
from itertools import count

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_tr.data import PreferenceDataModule, Rows, Source
from lit_tr.data.bad_rows import BadRow, BadRows
from lit_tr.data.cache import CacheBuilder, TokenCache
from lit_tr.data.inspection import WHOLE, FirstRows, Lengths, batch_tokens, cost, formats, overlap, repeats
from lit_tr.data.process import RowProcessor
from lit_tr.data.tokenization import NO_ROOM
from lit_tr.embedded import TINY, SyntheticPairs


def row(river, chosen, rejected):
    return {
        "prompt": f"Describe a {river} river.",
        "chosen": f" It is {chosen}.",
        "rejected": f" It is {rejected}.",
    }


def module(rows, **options):
    return PreferenceDataModule(TINY, rows, **options)


@pytest.fixture
def cached(tmp_path):
    """Return the cache of rows, with all bad rows in it."""
    return lambda rows, **options: module(rows, cache_dir=str(tmp_path), **options).cached("train", math.inf)


def arrays(**lengths):
    return Lengths(*(np.asarray(lengths[name]) for name in ("prompt", "chosen", "rejected", "refused")))


LENGTHS = arrays(prompt=[5, 20, 20, 3], chosen=[4, 4, 10, 30], rejected=[2, 10, -1, 31], refused=[50, -1])


@pytest.mark.parametrize(
    ("max_length", "options", "expected"),
    [
        (60, {}, (1, 0, 11 + 34 + 30 + 64 + 50)),  # the row of 50 tokens is kept, the one that nobody counted is not
        (30, {}, (3, 0, 11 + 34 + 30)),  # 3 + 31 do not fit, and 31 leave no room
        (25, {}, (3, 2, 11 + 29 + 25)),  # of both prompts of 20 tokens 15 are left
        (12, {}, (3, 2, 11 + (2 + 4 + 10) + (2 + 10))),
        (11, {}, (5, 0, 11)),  # 10 leave room for 1, and a prompt has 2 at least
        (25, {"truncate_prompts": False}, (5, 0, 11)),
        # half of 20 is for the prompt of 20 and for the response of 10; 31 have 17 after a prompt of 3
        (20, {"truncate_responses": True}, (2, 2, 11 + (10 + 4 + 10) + (10 + 10) + (3 + 17 + 17))),
        (
            25,
            {"truncate_prompts": False, "truncate_responses": True},
            (2, 0, 11 + (20 + 4 + 5) + (20 + 5) + 3 + 22 * 2),
        ),
    ],
)
def test_the_cost_of_a_max_length(max_length, options, expected):
    assert cost(LENGTHS, max_length, **options)[1:] == expected


@pytest.mark.parametrize("truncate_prompts", [True, False])
@pytest.mark.parametrize("max_length", [18, 30, 40, 100])
def test_the_cost_is_what_the_rows_cost_with_that_max_length(cached, max_length, truncate_prompts):
    source = SyntheticPairs(size=60)
    found = cost(Lengths.of(cached(source)), max_length, truncate_prompts)
    really = cached(source, max_length=max_length, truncate_prompts=truncate_prompts)
    tokens = sum(int(really.column(name).sum()) for name in ("prompt", "chosen", "rejected"))
    assert found == (max_length, len(really.bad_rows.found), (really.column("truncated") > 0).sum(), tokens)


def test_lengths_are_those_before_prompts_are_truncated(cached, tokenizer):
    rows = [row("big", "icy", "hot"), row("cold " * 40, "icy", "hot"), row("big", "icy", "hot " * 60)]
    found = Lengths.of(cached(rows, max_length=32)).by_name()
    prompts = [len(tokenizer(one["prompt"]).input_ids) for one in rows[:2]]
    chosen, rejected = (len(tokenizer(rows[0][side]).input_ids) + 1 for side in ("chosen", "rejected"))
    assert prompts[1] > 32
    assert found["prompt"].tolist() == prompts
    assert (found["chosen"].tolist(), found["rejected"].tolist()) == ([chosen] * 2, [rejected] * 2)
    assert found[WHOLE].tolist()[:2] == [prompt + max(chosen, rejected) for prompt in prompts]


def test_refused_rows_count_as_long_as_they_are(cached):
    class Counted(BadRow):
        tokens = 70

    kept = cached([row("big", "icy", "hot")])
    bad = BadRows(math.inf, 3, [Counted("a", NO_ROOM), BadRow("b", NO_ROOM), BadRow("c", "no 'chosen'")])
    assert Lengths.of(TokenCache(kept._data, bad)).refused.tolist() == [70, -1]


def test_repeats_are_found(cached):
    rows = [
        row("big", "icy", "hot"),
        row("big", "icy", "hot"),
        row("big", "hot", "icy"),
        row("old", "icy", "hot"),
        row("big", "icy", "red"),  # of the same lengths
        row("big", "hot", "icy"),
    ]
    found = repeats(cached(rows))
    assert found.duplicates.tolist() == [1, 5]
    assert found.conflicts.tolist() == [2, 5]
    unpaired = [{"prompt": "Hi", "completion": " Hello", "label": label} for label in (True, True, False)]
    found = repeats(cached(unpaired))
    assert (found.duplicates.tolist(), found.conflicts.tolist()) == ([1], [2])


def test_prompts_in_two_sets_are_found(cached):
    train, val = cached([row("big", "icy", "hot")]), cached([row("old", "icy", "hot"), row("big", "red", "hot")])
    assert overlap(val, train).tolist() == [1]
    assert overlap(train, val).tolist() == [0]


@given(st.data())
def test_tokens_of_batches_are_those_of_the_collator(pairs, draw):
    order = draw.draw(st.permutations(range(len(pairs))))
    size = draw.draw(st.integers(1, len(pairs)))
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    packed, padded = (
        sum(module([], packed=one).collator(pairs.__getitems__(batch)).input_ids.numel() for batch in batches)
        for one in (True, False)
    )
    assert batch_tokens(pairs, batches) == (packed, padded)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Pairs, two to a prompt, and unpaired rows."""
    rows = [row("big", "icy", "hot"), row("big", "a cold one", "red"), row("old", "icy", "grey or blue")]
    unpaired = [{"prompt": "Describe a big river.", "completion": " No", "label": label} for label in (True, False)]
    return module(rows + unpaired, cache_dir=str(tmp_path_factory.mktemp("cache"))).cached("train")


def test_formats_are_named(write_rows, tokenizer):
    def named(rows, tokenizer=tokenizer, **options):
        return formats(Rows(write_rows(rows), **options), RowProcessor(tokenizer))

    rows = [row("big", "icy", "hot"), row("big", "icy", "hot") | {"chosen": None}, row("old", "icy", "hot")]
    assert named(rows) == {"explicit_prompt, plain text": 2}
    with_template = copy.copy(tokenizer)
    with_template.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    assert named(rows, with_template) == {"explicit_prompt, text made chat messages": 2}
    assert named(rows, with_template, chat=False) == {"explicit_prompt, plain text": 2}
    renamed = [{"ask": "Hi", "chosen": " Hello", "rejected": " No"}]
    assert named(renamed, columns={"prompt": "ask"}) == {"explicit_prompt, plain text": 1}
    user, assistant = ([{"role": role, "content": "Hi"}] for role in ("user", "assistant"))
    chat = [{"prompt": user, "completion": assistant, "label": True}]
    assert named(chat) == {"unpaired, chat messages": 1}


class Endless(Source):
    def rows(self):
        for i in count():
            yield f"row {i}", row(f"river number {i}", "icy", "hot")


@pytest.mark.parametrize("processes", [1, 2])
def test_the_first_rows_of_an_endless_source(tokenizer, tmp_path, processes):
    cache = CacheBuilder(RowProcessor(tokenizer), tmp_path, processes=processes)(FirstRows(Endless(), 1700), "train")
    assert [cache.location(i) for i in range(len(cache))] == [f"row {i}" for i in range(1700)]
    assert list(tmp_path.iterdir()) == []  # nobody would look for it again
