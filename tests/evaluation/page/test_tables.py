import math
from pathlib import Path

import pytest

from lit_tr.evaluation.page import Comparison, Run
from lit_tr.evaluation.page.groups import grouped
from lit_tr.evaluation.page.tables import ends, peaks, win_rates
from tests.evaluation.page.folders import RATES, config, evaluated


def groups(*paths):
    """A group of runs, one for each path of scores."""
    return grouped(
        [
            Run(
                Path(str(i)),
                config(seed=i),
                evaluations=[evaluated(2 * k, float(k), score) for k, score in enumerate(path)],
            )
            for i, path in enumerate(paths)
        ]
    )


def test_the_last_evaluation_of_each_group_has_a_row():
    table = ends(groups([0.0, 1.0, 3.0], [0.0, 2.0, 2.0]))
    assert table.heads == ["runs", "seeds", "score", "KL (nats)"]
    [[label, seeds, score, kl]] = table.rows
    assert (label.text, seeds.text, kl.text) == (
        "TR-DPO, soft (alpha 0.6, every 2), beta 0.1",
        "2",
        "2.00 [2.00, 2.00]",
    )
    half = 12.706205 * 0.5  # Student's interval of 3 and 2
    assert score.text == f"2.50 [{2.5 - half:.2f}, {2.5 + half:.2f}]"
    assert score.figure == 2.5


def test_the_loss_after_the_peak_is_that_of_each_seed():
    table = peaks(groups([0.0, 5.0, 3.0], [0.0, 2.0, 4.0]), "score")
    [[_, top, step, last, lost]] = table.rows
    assert [cell.figure for cell in (top, step, last, lost)] == [4.5, 3.0, 3.5, 1.0]


def test_nothing_evaluated_is_no_table():
    assert ends(groups([])) is None
    assert ends(groups([1.0])) is None  # the initial policy alone
    assert peaks(groups([0.0, 1.0]), "score") is None


def test_win_rates_are_in_percent_and_what_is_absent_is_a_dash():
    judged = Comparison(Path("."), {"a": {"name": "A"}, "b": {"name": "B"}, "judge": "J", "criteria": RATES})
    table = win_rates([judged])
    assert "repeatability" not in table.heads
    overall, helpfulness = (dict(zip(table.heads, row, strict=True)) for row in table.rows)
    assert (overall["policies"].text, overall["criterion"].text, overall["judge"].text) == ("A over B", "overall", "J")
    assert (overall["win rate"].text, overall["win rate"].figure) == ("57.1 [49.1, 65.2]", 0.5714)
    assert (overall["length-controlled"].text, overall["position bias"].text) == (
        "54.3 [40.0, 60.0]",
        "-1.2 [-10.0, 10.0]",
    )
    assert (overall["unparsable"].text, helpfulness["ties"].text) == ("0 + 1", "–")
    assert win_rates([]) is None


def test_means_without_a_spread_have_no_interval():
    table = peaks(groups([0.0, 1.0, math.pi]), "score")
    assert table.rows[0][1].text == "3.14"
    assert table.rows[0][1].figure == pytest.approx(math.pi)


def test_of_a_seed_that_goes_further_only_the_common_part_counts():
    table = peaks(groups([0.0, 5.0, 3.0, 8.0], [0.0, 2.0, 4.0]), "score")
    assert [cell.figure for cell in table.rows[0][1:]] == [4.5, 3.0, 3.5, 1.0]
