import numpy as np
import pytest

from lit_tr.evaluation.page import find, write_page
from lit_tr.evaluation.page.proxies import correlations, curves, over_rounds, together
from tests.evaluation.page.folders import GOLD, evaluated, lines, run, scored

OTHER = {**GOLD, "c": 5.0}


@pytest.fixture
def sets(tmp_path):
    scored(tmp_path / "seed1/whole", [1.0, 2.0, 3.0], 0.5)
    scored(tmp_path / "seed1/less", [4.0, 4.0, 4.0], None)
    scored(tmp_path / "seed2/whole", [2.0, 2.5, 9.0], 1.0, OTHER)
    return together(find([tmp_path]).scores)


def test_rewards_stand_together_where_the_other_one_gave_the_same_scores(sets):
    assert {name: [one.folder.name for one in some] for name, some in sets.items()} == {
        "seed1": ["less", "whole"],
        "seed2": ["whole"],
    }


def test_sets_of_one_name_are_told_apart_by_their_folders(tmp_path):
    for root, gold in (("x", GOLD), ("y", OTHER)):
        scored(tmp_path / root / "scores/whole", [1.0, 2.0, 3.0], 0.5, gold)
    assert [*together(find([tmp_path]).scores)] == [str(tmp_path / root / "scores") for root in "xy"]


def test_curves_are_standardised_over_the_policies(sets):
    first, second = curves(sets)
    [axes] = first.figure.axes
    gold, less, whole = (line.get_ydata() for line in axes.get_lines())
    step = 1 / np.std([1.0, 2.0, 3.0])
    np.testing.assert_allclose(gold, [-step, step, 0.0])
    np.testing.assert_allclose(whole, [-step, 0.0, step])
    np.testing.assert_allclose(less, [0.0, 0.0, 0.0])  # all alike
    labels = [line.get_label() for line in axes.get_lines()]
    assert labels == ["Gold <b>", "WhiteBox, less: ρ –", "WhiteBox, whole: ρ 0.50"]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["a", "b", "c"]
    assert (first.name, second.name) == ("proxies_1", "proxies_2")


def test_the_table_has_the_mean_over_sets_and_a_dash_for_what_is_not_known(sets):
    table = correlations(sets)
    assert table.heads == ["reward", "seed1", "seed2", "mean"]
    assert [[cell.text for cell in row] for row in table.rows] == [
        ["WhiteBox, less", "–", "–", "–"],
        ["WhiteBox, whole", "0.50", "1.00", "0.75 [-2.43, 3.93]"],  # Student's: 0.75 -+ 12.7062 / 4
    ]
    assert [cell.figure for cell in table.rows[1][1:]] == [0.5, 1.0, 0.75]


def test_one_set_has_no_mean_and_none_no_table(sets):
    del sets["seed2"]
    assert correlations(sets).heads == ["reward", "seed1"]
    assert correlations({}) is None


def of_round(number, score, proxy, **more):
    return evaluated(
        number, 1.0 * number, score, score_standard_error=0.1, proxy=proxy, proxy_standard_error=0.2, **more
    )


def test_a_reward_is_drawn_beside_the_truth_over_the_rounds(tmp_path):
    rows = [of_round(0, -1.0, 0.5), of_round(1, 0.5, 2.0), of_round(2, -0.5, 9.0, exploited=True)]
    lines(tmp_path / "mine/evaluation.jsonl", rows)
    lines(tmp_path / "other/evaluation.jsonl", rows[:2])
    run(tmp_path / "fit", [evaluated(8, 1.0, 2.0)], metrics=False)
    first, second = over_rounds(find([tmp_path]).runs)
    assert first.title == "mine: the reward is exploited from round 2 on"
    assert second.title == "other: reward and truth over the rounds"
    assert (first.name, second.name) == ("rounds_1", "rounds_2")
    truth, proxy = (axes.containers[0] for axes in first.figure.axes)
    np.testing.assert_allclose(truth.lines[0].get_xydata(), [(0, -1.0), (1, 0.5), (2, -0.5)])
    np.testing.assert_allclose(proxy.lines[0].get_xydata(), [(0, 0.5), (1, 2.0), (2, 9.0)])
    [bars] = proxy.lines[2]
    np.testing.assert_allclose(bars.get_segments()[2], [(2, 9 - 0.2 * 1.959964), (2, 9 + 0.2 * 1.959964)])
    page, *pictures = write_page(find([tmp_path / "mine"]), tmp_path / "page.html")
    assert "the reward is exploited from round 2 on" in page.read_text()
    assert "page_rounds_1.png" in [one.name for one in pictures]
