import math

import pytest
from scipy.stats import binomtest

from lit_tr.evaluation.agreement import agreement, mean_scores, rank_correlations
from lit_tr.evaluation.responses import Response
from lit_tr.evaluation.scored import Responses


def some(scores, prompts=None):
    names = prompts or range(len(scores))
    return [Response(str(name), "?", "!", score=score) for name, score in zip(names, scores, strict=True)]


def test_agreement_counts_ties_half_and_leaves_out_what_has_no_score():
    chosen, rejected = some([3.0, 2.0, 2.0, 0.0, None, 1.0]), some([1.0, 0.0, 0.0, 2.0, 1.0, None])
    found = agreement(chosen, rejected)
    assert (found.pairs, found.agreement) == (4, 0.75)
    assert found.interval == pytest.approx(tuple(binomtest(3, 4).proportion_ci(method="wilson")))
    confidence = 1 / (1 + math.exp(-2))  # of each pair, in one bin
    assert found.calibration_error == pytest.approx(confidence - 0.75, abs=1e-6)
    assert found.temperature == pytest.approx(2 / math.log(3), rel=1e-3)
    assert found.calibration_error_at_temperature == pytest.approx(0.0, abs=1e-3)
    assert agreement(some([1.0]), some([1.0])).agreement == 0.5
    assert agreement(some([None]), some([1.0])) is None


def test_a_temperature_of_other_pairs_is_taken_as_it_is():
    others = agreement(some([2.0, 2.0, 2.0, 0.0]), some([0.0, 0.0, 0.0, 2.0]))  # sigmoid(2 / T) = 3/4
    found = agreement(some([3.0, 0.0]), some([0.0, 3.0]), others.temperature)
    assert found.temperature == others.temperature == pytest.approx(2 / math.log(3), rel=1e-3)
    confidence = 1 / (1 + math.exp(-3 / others.temperature))
    assert found.calibration_error_at_temperature == pytest.approx(confidence - 0.5, abs=1e-6)
    assert found.calibration_error == pytest.approx(1 / (1 + math.exp(-3)) - 0.5, abs=1e-6)


def test_means_have_errors_over_prompts():
    found = mean_scores(
        Responses({"a": some([1.0, 3.0, 6.0, 6.0, None], "ppqqr"), "b": some([None]), "c": some([5.0])})
    )
    assert found["a"] == {"responses": 5, "unscored": 1, "mean": 4.0, "standard_error": 2.0}
    assert found["b"] == {"responses": 1, "unscored": 1}
    assert found["c"]["standard_error"] is None


def test_rank_correlations_over_responses_and_over_policies():
    ours = Responses({"a": some([1.0, 2.0]), "b": some([3.0, 4.0]), "c": some([5.0, None])})
    theirs = Responses({"a": some([10.0, 0.0]), "b": some([30.0, 20.0]), "c": some([2.0, 99.0])})
    found = rank_correlations(ours, theirs)
    # ranks 1..5 and 3, 1, 5, 4, 2: 1 - 6 * (4 + 1 + 4 + 0 + 9) / (5 * 24)
    assert found["responses"] == {"count": 5, "rho": pytest.approx(1 - 6 * 18 / 120)}
    # means 1.5, 3.5, 5 and 5, 25, 2: ranks 1, 2, 3 and 2, 3, 1
    assert found["policies"] == {"count": 3, "rho": pytest.approx(1 - 6 * 6 / 24)}


def test_there_is_none_of_equal_scores_or_of_two():
    flat = Responses({"a": some([1.0, 1.0, 1.0])})
    found = rank_correlations(flat, Responses({"a": some([1.0, 2.0, 3.0])}))
    assert found == {"responses": {"count": 3, "rho": None}, "policies": {"count": 1, "rho": None}}
