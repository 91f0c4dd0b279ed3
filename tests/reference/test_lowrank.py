"""Against dense matrices in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_tr.reference.lowrank import LowRank, average, averages, exact, iterated, padded, squared_norm


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


def errors(policies, references, alpha, leading, device="cpu"):
    """The error of an average, that of the best of its rank by a dense SVD, and the one it tells, relative."""
    sides = (
        [LowRank(one.a.to(device), one.b.to(device), one.scaling) for one in side] for side in (policies, references)
    )
    [(a, b)], cut, total = averages([(*sides, alpha)], leading)
    a, b = a.cpu(), b.cpu()
    found = []
    for i, (policy, reference) in enumerate(zip(policies, references, strict=True)):
        dense_average = alpha * dense(policy) + (1 - alpha) * dense(reference)
        best = torch.linalg.svdvals(dense_average)[len(reference.a) :].norm()
        error = (dense(LowRank(a[i], b[i], reference.scaling)) - dense_average).norm()
        found.append(torch.stack([error, best, (cut[i] / total[i]).sqrt().cpu() * dense_average.norm()]))
        found[-1] /= dense_average.norm()
    moved = [LowRank(*factors, references[0].scaling) for factors in zip(a, b, strict=True)]
    return torch.stack(found).unbind(-1), moved


def graded(one, decades):
    return LowRank(one.a, one.b * torch.logspace(0, -decades, one.b.shape[-1]), one.scaling)


def hard_cases(draw):
    """Pairs of a policy and a reference of ranks 16 and 32, by what makes them hard."""
    policy, reference = random((96, 80), 16, 2.0, draw), random((96, 80), 32, 0.5, draw)
    copy = LowRank(*padded(policy, reference), 0.5)
    near = LowRank(*(one + 1e-4 * torch.randn(one.shape, generator=draw) for one in (policy.a, policy.b)), 2.0)
    return {
        "after a hard update": (policy, copy),
        "after a small step": (near, copy),
        "after a large one": (random((96, 80), 16, 2.0, draw), copy),
        "a new adapter": (policy, LowRank(copy.a, 0 * copy.b, 0.5)),
        "few rows": (random((30, 80), 16, 2.0, draw), random((30, 80), 32, 0.5, draw)),
        "small singular values": (graded(policy, 5), graded(reference, 7)),
        "full ranks": (policy, reference),
    }


def check_hard_cases(leading, excess, device="cpu"):
    for name, (policy, reference) in hard_cases(torch.Generator().manual_seed(0)).items():
        for alpha in (0.01, 0.6, 0.999):
            (error, best, told), _ = errors([policy], [reference], alpha, leading, device)
            assert error <= (1 + excess) * best + 1e-6, (name, alpha)
            torch.testing.assert_close(told, error, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("leading", "excess"), [(exact, 1e-6), (iterated, 0.04)])
def test_hard_cases_are_near_the_best_of_the_rank(leading, excess):
    check_hard_cases(leading, excess)


@pytest.mark.parametrize("alpha", [0.01, 0.6])
def test_iterations_follow_a_policy_as_well_as_exact_decompositions(alpha):
    """From the start of a run, where the adapter is zero, as two factors drift."""
    draw = torch.Generator().manual_seed(0)
    policy = LowRank(torch.randn(8, 60, generator=draw), torch.zeros(50, 8), 2.0)
    moved = [LowRank(*padded(policy, LowRank(torch.zeros(16, 60), torch.zeros(50, 16), 2.0)), 2.0)]
    drift = [torch.randn(one.shape, generator=draw) for one in (policy.a, policy.b)]
    for _ in range(20):
        noise = [torch.randn(one.shape, generator=draw) for one in drift]
        a, b = (1e-3 * (one + other) for one, other in zip(drift, noise, strict=True))
        policy = LowRank(policy.a + a, policy.b + b, 2.0)
        (error, best, _), moved = errors([policy], moved, alpha, iterated)
        assert error <= 1.001 * best + 2e-7


def test_batches_of_other_shapes_are_averaged_in_one_call():
    draw = torch.Generator().manual_seed(0)
    shapes = ((9, 7), (12, 5))
    batches = [([random(s, 2, 2.0, draw)] * 2, [random(s, 3, 1.0, draw)] * 2, 0.3) for s in shapes]
    factors, cut, _ = averages(batches)
    for i, (policies, references, alpha) in enumerate(batches):
        a, b, left_out, _ = average(policies[0], references[0], alpha)
        expected = dense(LowRank(a, b, 1.0))
        for j in range(2):
            torch.testing.assert_close(dense(LowRank(factors[i][0][j], factors[i][1][j], 1.0)), expected)
            assert cut[2 * i + j].item() == pytest.approx(left_out.item())
