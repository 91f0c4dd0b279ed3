"""The pictures show what the guide says of them."""

import pytest
import torch

from docs import pictures
from docs.pictures import ADAPTIVE, BETA, EVERY, FROZEN, HARD, KINDS, MAX_KL, RESPONSES, SOFT


@pytest.fixture(scope="module")
def runs():
    return {kind: pictures.simulate(kind) for kind in KINDS}


def around_updates(points):
    return [(before, after) for before, after in zip(points, points[1:], strict=False) if after["updated"]]


def test_a_frozen_reference_leads_to_the_optimum_of_dpo(runs):
    reward = pictures.rewards()
    optimum = (reward / BETA).softmax(dim=0)  # of a uniform reference
    kl = (optimum * (optimum.log() + torch.tensor(RESPONSES, dtype=torch.float64).log())).sum().item()
    assert runs[FROZEN][-1]["kl"] == pytest.approx(kl, rel=0.02)
    assert runs[FROZEN][-1]["reward"] == pytest.approx((optimum * reward).sum().item(), rel=0.02)
    assert not around_updates(runs[FROZEN])


def test_a_hard_update_takes_divergence_and_margin_to_0_and_a_soft_one_lowers_them(runs):
    for kind, left in ((HARD, 0.0), (SOFT, 0.4)):
        moves = around_updates(runs[kind])
        assert [after["step"] for _, after in moves] == [EVERY, 2 * EVERY, 3 * EVERY]
        for before, after in moves:
            assert after["margin"] == pytest.approx(left * before["margin"])
            assert after["kl"] == pytest.approx(0) if kind == HARD else 0 < after["kl"] < before["kl"]


def test_an_adaptive_update_follows_when_the_divergence_exceeds_its_bound(runs):
    moves = around_updates(runs[ADAPTIVE])
    assert len(moves) > 2
    assert all(before["kl"] > MAX_KL and after["kl"] == pytest.approx(0) for before, after in moves)


def test_policies_with_moving_references_go_beyond_the_frozen_ones_optimum(runs):
    last = {kind: points[-1]["policy"] for kind, points in runs.items()}
    assert last[FROZEN] < min(last[SOFT], last[HARD], last[ADAPTIVE])


def test_pictures_are_drawn_with_a_line_for_each_run(runs):
    assert [axes.get_title(loc="left") for axes in pictures.draw_paths(runs).axes] == list(KINDS)
    assert {len(axes.lines) for axes in pictures.draw_figures(runs).axes} == {len(KINDS)}
