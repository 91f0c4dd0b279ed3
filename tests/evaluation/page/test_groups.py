import math
from pathlib import Path

import pytest

from lit_tr.evaluation.page.found import Run
from lit_tr.evaluation.page.groups import behind, evaluations, grouped, points
from tests.evaluation.page.folders import config, evaluated


def made(name="r", rows=(), **options):
    return Run(Path(name), config(**options), evaluations=rows)


def test_runs_that_differ_by_seeds_and_places_are_one_group():
    groups = grouped(
        [made("a", seed=1), made("b", seed=2), made("c", update=None), made("d", beta=1.0), made("e", update="hard")]
    )
    assert [(group.label, len(group.runs)) for group in groups] == [
        ("DPO, frozen reference, beta 0.1", 1),
        ("TR-DPO, hard (every 4), beta 0.1", 1),
        ("TR-DPO, soft (alpha 0.6, every 2), beta 0.1", 2),
        ("TR-DPO, soft (alpha 0.6, every 2), beta 1", 1),
    ]
    assert [group.kind for group in groups] == ["frozen", "hard", "soft", "soft"]


def test_what_else_differs_is_told():
    labels = [group.label for group in grouped([made("a"), made("b", lr=1e-3)])]
    assert labels == [
        "TR-DPO, soft (alpha 0.6, every 2), optimizer.init_args.lr 0.0001, beta 0.1",
        "TR-DPO, soft (alpha 0.6, every 2), optimizer.init_args.lr 0.001, beta 0.1",
    ]


def test_runs_without_a_configuration_go_by_their_folders():
    assert [group.label for group in grouped([Run(Path("x/one")), Run(Path("x/two"))])] == ["one", "two"]


def test_one_seed_has_intervals_over_prompts():
    rows = [evaluated(0, 0.0, 1.0), evaluated(8, 4.0, 2.0, score_standard_error=0.5)]
    [group] = grouped([made(rows=rows)])
    first, last = points(group, "score")
    assert (first.step, first.kl.value, first.quality.value) == (0, 0, 1)
    assert math.isnan(first.quality.low)
    assert (last.seeds, last.quality) == (1, pytest.approx((2.0, 2 - 1.959964 * 0.5, 2 + 1.959964 * 0.5)))
    assert last.kl == pytest.approx((4.0, 4 - 0.1959964, 4 + 0.1959964))


def test_several_seeds_have_students_intervals():
    """Of 1, 2, 3: 2 -+ 4.3027 * 1 / sqrt(3)."""
    runs = [made(str(seed), [evaluated(8, 1.0, float(seed))], seed=seed) for seed in (1, 2, 3)]
    [point] = points(grouped(runs)[0], "score")
    half = 4.302653 / 3**0.5
    assert point.quality == pytest.approx((2.0, 2 - half, 2 + half))
    assert point.kl == (1, 1, 1)


def test_of_one_step_the_last_figures_count_and_the_reference_is_another_policy():
    rows = [
        {"step": 4, "label": "policy", "score": 1.0, "length": 9},
        {"step": 4, "label": "reference", "score": 7.0},
        {"step": 4, "label": "policy", "score": 2.0},
        {"step": 4, "label": "initial", "score": 0.5},
    ]
    found = evaluations(made(rows=rows))
    assert [*found] == [0, 4]
    assert (found[4]["score"], found[4]["length"], found[0]["score"]) == (2.0, 9, 0.5)


def test_the_log_ratio_stands_in_where_no_exact_divergence_is_known():
    rows = [
        {"step": 2, "label": "policy", "win_rate": 0.6, "win_rate_interval": [0.5, 0.8], "kl_log_ratio": 1.0},
        {"step": 4, "label": "policy", "win_rate": 0.6, "kl": 3.0, "kl_log_ratio": 2.5},
        {"step": 6, "label": "policy", "win_rate": 0.6},
        {"step": 8, "label": "policy", "score": 0.6, "kl": 1.0},
    ]
    first, second = points(grouped([made(rows=rows)])[0], "win_rate")
    assert (first.kl.value, second.kl.value) == (1.0, 3.0)
    assert first.quality == (0.6, 0.5, 0.8)


def test_a_seed_that_is_behind_does_not_mix_its_middle_with_the_ends_of_others():
    whole = [evaluated(0, 0.0, 0.0), evaluated(4, 1.0, 1.0), evaluated(8, 2.0, 9.0)]
    [group] = grouped([made("a", whole, seed=1), made("b", whole[:2], seed=2), made("c", seed=3)])
    assert [(point.step, point.seeds) for point in points(group, "score")] == [(0, 2), (4, 2)]
    assert [run.folder.name for run in behind(group)] == ["b", "c"]
