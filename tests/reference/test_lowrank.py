"""Against dense matrices in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_tr.reference.lowrank import LowRank, average, padded, squared_norm


def random(shape, rank, scaling, draw):
    a = torch.randn(*shape[:-2], rank, shape[-1], generator=draw)
    return LowRank(a, torch.randn(*shape[:-1], rank, generator=draw), scaling)


def dense(matrix):
    return matrix.scaling * matrix.b.double() @ matrix.a.double()


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(9, 7), (3, 9, 7), (2, 5, 20), (4, 30, 6)]),
    ranks=st.tuples(st.integers(1, 4), st.integers(1, 9)),
    scalings=st.tuples(st.sampled_from([0.5, 2.0]), st.sampled_from([1.0, 3.0])),
    alpha=st.floats(0.01, 0.99),
    seed=st.integers(0, 9),
)
def test_the_average_is_the_best_of_its_rank_and_says_what_it_leaves_out(shape, ranks, scalings, alpha, seed):
    draw = torch.Generator().manual_seed(seed)
    policy, reference = (random(shape, r, s, draw) for r, s in zip(ranks, scalings, strict=True))
    a, b, cut, total = average(policy, reference, alpha)
    assert a.shape == reference.a.shape
    assert b.shape == reference.b.shape
    exact = alpha * dense(policy) + (1 - alpha) * dense(reference)
    u, values, v = torch.linalg.svd(exact, full_matrices=False)
    rank = ranks[1]
    best = u[..., :rank] @ torch.diag_embed(values[..., :rank]) @ v[..., :rank, :]
    size = exact.norm().item()
    result = dense(LowRank(a, b, reference.scaling))
    torch.testing.assert_close(result, best, rtol=1e-3, atol=2e-5 * size)
    torch.testing.assert_close(total.double(), exact.square().sum((-2, -1)), rtol=1e-4, atol=0.0)
    expected = values[..., rank:].square().sum(-1)
    torch.testing.assert_close(cut.double(), expected, rtol=1e-3, atol=1e-9 * size**2)
    torch.testing.assert_close(squared_norm(policy), dense(policy).square().sum((-2, -1)))


def test_nothing_is_left_out_where_the_ranks_fit():
    draw = torch.Generator().manual_seed(0)
    policy, reference = random((40, 30), 4, 2.0, draw), random((40, 30), 8, 0.5, draw)
    reference.b[:, 4:] = 0  # of rank 4
    a, b, cut, total = average(policy, reference, 0.3)
    exact = 0.3 * dense(policy) + 0.7 * dense(reference)
    assert ((dense(LowRank(a, b, 0.5)) - exact).norm() / exact.norm()).item() < 1e-6
    assert (cut / total).item() < 1e-12


@pytest.mark.parametrize("noise", [0.0, 1e-7, 1e-3])
def test_factors_that_hardly_differ_are_averaged_exactly(noise):
    """As at the start of a run: the A matrices are the same, and the reference's are padded with zeros."""
    draw = torch.Generator().manual_seed(0)
    policy = random((40, 30), 4, 2.0, draw)
    a, b = padded(policy, LowRank(torch.zeros(8, 30), torch.zeros(40, 8), 0.5))
    reference = LowRank(a + noise * torch.randn(8, 30, generator=draw), 0.5 * b, 0.5)
    a, b, cut, total = average(policy, reference, 0.3)
    exact = 0.3 * dense(policy) + 0.7 * dense(reference)
    assert ((dense(LowRank(a, b, 0.5)) - exact).norm() / exact.norm()).item() < 1e-6
    assert (cut / total).item() < 1e-12


@pytest.mark.parametrize("scaling", [2.0, 0.7])
def test_widened_factors_make_the_same_matrix(scaling):
    draw = torch.Generator().manual_seed(0)
    policy, reference = random((6, 5), 2, 2.0, draw), random((6, 5), 4, scaling, draw)
    a, b = padded(policy, reference)
    assert a.shape == (4, 5)
    torch.testing.assert_close(dense(LowRank(a, b, scaling)), dense(policy), rtol=1e-6, atol=1e-6)


def test_a_zero_matrix_stays_zero():
    zero = LowRank(torch.ones(2, 5), torch.zeros(6, 2), 1.0)
    a, b, cut, total = average(zero, zero, 0.5)
    assert (b @ a).abs().max() == cut == total == 0
