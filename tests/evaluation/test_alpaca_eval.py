import gzip
import json
import math
import os
import random
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lit_tr.errors import UserError
from lit_tr.evaluation.alpaca_eval import published, read_annotations
from lit_tr.evaluation.win_rates import win_rates

DATA = os.environ.get("LIT_TR_ALPACA_EVAL")
"""Folder of two published files of annotations; they are not ours to ship."""


def row(number, preference, **more):
    return {
        "instruction": f"Do {number}.",
        "output_1": "baseline" * (number % 5 + 1),
        "output_2": "model" * (number % 3 + 1),
        "generator_1": "base",
        "generator_2": "mine",
        "annotator": "judge",
        "preference": preference,
        **more,
    }


def written(path, rows):
    text = json.dumps(rows) if path.suffix == ".json" else "".join(json.dumps(one) + "\n" for one in rows)
    path.write_text(text)
    return path


PREFERENCES = [1.0, 2.0, 1.5, 0, None, math.nan, 1.25, 1.9, 1.0]


def test_preferences_ties_and_gaps(tmp_path):
    found = read_annotations(written(tmp_path / "a.json", [row(*one) for one in enumerate(PREFERENCES)]))
    assert (found.model, found.baseline) == ("mine", "base")
    values = [one.preference for one in found.judgements]
    assert values == pytest.approx([0.0, 1.0, 0.5, 0.5, None, None, 0.25, 0.9, 0.0])
    rates = win_rates(found.judgements)
    known = [value for value in values if value is not None]
    assert (rates.pairs, rates.unparsable) == (7, (2, 0))
    assert rates.win_rate == pytest.approx(np.mean(known))
    assert rates.standard_error == pytest.approx(stats.sem(known))
    assert rates.ties == pytest.approx(2 / 7)
    assert rates.discrete_win_rate == pytest.approx((2 + 2 / 2) / 7)


def test_order_and_kind_of_file_say_nothing(tmp_path):
    rows = [row(*one) for one in enumerate(PREFERENCES)]
    first = win_rates(read_annotations(written(tmp_path / "a.json", rows)).judgements)
    random.Random(0).shuffle(rows)
    again = win_rates(read_annotations(written(tmp_path / "a.jsonl", rows)).judgements)
    for name in ("win_rate", "standard_error", "length_controlled", "discrete_win_rate"):
        assert getattr(again, name) == pytest.approx(getattr(first, name), abs=1e-12)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda one: one.pop("preference"), "row 2: there is no preference"),
        (lambda one: one.pop("output_1"), "row 2: there is no output_1"),
        (lambda one: one.update(preference="m"), "row 2: preference is 'm'"),
        (lambda one: one.update(preference=2.5), "row 2: preference is 2.5"),
        (lambda one: one.update(preference=True), "row 2: preference is True"),
        (lambda one: one.update(output_2=None), "row 2: output_2 is no text"),
        (lambda one: one.update(instruction=["x"]), "row 2: instruction is no text"),
        (lambda one: one.update(generator_2="other"), "generator_2 must be one model, and there are mine, other"),
    ],
)
def test_wrong_rows_are_named(tmp_path, change, says):
    rows = [row(0, 1.0), row(1, 2.0)]
    change(rows[1])
    with pytest.raises(UserError, match=says):
        read_annotations(written(tmp_path / "a.jsonl", rows))


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_annotations(tmp_path / "none.json")
    with pytest.raises(UserError, match="there are no annotations"):
        read_annotations(written(tmp_path / "a.jsonl", []))
    (tmp_path / "b.jsonl").write_text("{")
    with pytest.raises(UserError, match="invalid JSON"):
        read_annotations(tmp_path / "b.jsonl")
    whole = gzip.compress("".join(json.dumps(row(i, 1.0)) + "\n" for i in range(999)).encode())
    (tmp_path / "c.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="broken or cut short"):
        read_annotations(tmp_path / "c.jsonl.gz")


def test_columns_that_are_not_needed_may_be_missing(tmp_path):
    rows = [{key: row(i, 1.5)[key] for key in ("instruction", "output_1", "output_2", "preference")} for i in range(3)]
    found = read_annotations(written(tmp_path / "a.json", rows))
    assert (found.model, found.baseline) == ("output_2", "output_1")
    assert win_rates(found.judgements).win_rate == 0.5


def test_several_rows_of_an_instruction_are_its_samples(tmp_path):
    rows = [row(0, 1.0), row(0, 2.0), row(1, 2.0)]
    rates = win_rates(read_annotations(written(tmp_path / "a.json", rows)).judgements)
    assert (rates.prompts, rates.pairs, rates.win_rate) == (2, 3, 0.75)


def test_the_published_figure_says_what_it_needs(tmp_path):
    with pytest.raises(UserError, match="df_gamed.csv"):
        published(written(tmp_path / "a.json", [row(0, 1.0)]))


@pytest.mark.skipif(not DATA, reason="LIT_TR_ALPACA_EVAL names no folder of published annotations")
@pytest.mark.parametrize(
    ("name", "win_rate", "error", "at_equal_length"),
    [("claude-2", 17.188240, 1.174828, 36.7943), ("vicuna-7b-v1.5", 4.797494, 0.665596, 11.2135)],
)
def test_published_annotations(name, win_rate, error, at_equal_length):
    found = win_rates(read_annotations(Path(DATA) / f"alpaca_eval2_{name}.jsonl.gz").judgements)
    assert found.prompts == 805
    assert 100 * found.win_rate == pytest.approx(win_rate, abs=1e-6)
    assert 100 * found.standard_error == pytest.approx(error, abs=1e-6)
    assert 100 * found.length_controlled == pytest.approx(at_equal_length, abs=1e-4)
