"""Labels that were made of known weights give these back; standard errors beside statsmodels'."""

import numpy as np
import pytest
from statsmodels.api import Logit

from lit_tr.errors import UserError
from lit_tr.evaluation.intervals import wilson
from lit_tr.evaluation.labels import explain_labels
from lit_tr.evaluation.responses import Response

WEIGHTS = {"helpful": 1.2, "brief": -0.5, "polite": 0.2, "green": 0.0}
PAIRS = 3000


def labelled(seed=0):
    """Pairs of responses with ratings of 1 to 9, of which one is chosen with the probability that the weights give."""
    draw = np.random.default_rng(seed)
    ratings = draw.integers(1, 10, (PAIRS, 2, len(WEIGHTS))) / 2
    above = (ratings[:, 0] - ratings[:, 1]) @ [*WEIGHTS.values()]
    first = draw.random(PAIRS) < 1 / (1 + np.exp(-above))
    sides = []
    for side in (first, ~first):
        picked = np.where(side[:, None], ratings[:, 0], ratings[:, 1])
        features = [dict(zip(WEIGHTS, row, strict=True)) for row in picked.tolist()]
        sides.append([Response(str(i), f"prompt {i % 500}", "", features=one) for i, one in enumerate(features)])
    return sides


def test_known_principles_are_found_with_their_weights():
    chosen, rejected = labelled()
    found = explain_labels(chosen, rejected)
    differences = np.array(
        [[a.features[name] - b.features[name] for name in WEIGHTS] for a, b in zip(chosen, rejected, strict=True)]
    )
    for number, (name, weight) in enumerate(WEIGHTS.items()):
        one = found.features[name]
        assert abs(one.weight - weight) < 3 * one.standard_error
        right = float((np.sign(differences[:, number]) + 1).sum()) / 2
        assert (one.agreement, one.pairs) == (right / PAIRS, PAIRS)
        assert one.interval == wilson(right, PAIRS)
    strong = {name for name, one in found.features.items() if abs(one.weight) > 3 * one.standard_error}
    assert strong == {"helpful", "brief", "polite"}
    signs = np.where(np.arange(PAIRS) % 2, 1, -1)
    other = Logit(signs > 0, signs[:, None] * differences).fit(disp=0)
    assert [one.weight for one in found.features.values()] == pytest.approx(other.params, rel=0.01, abs=0.002)
    assert [one.standard_error for one in found.features.values()] == pytest.approx([*other.bse], rel=0.02)
    best = (np.sign(differences @ [*WEIGHTS.values()]) + 1).mean() / 2  # no one knows more than the true weights
    assert found.accuracy == pytest.approx(best, abs=0.01)
    assert found.interval[0] < best < found.interval[1]


def test_held_out_accuracy_of_noise_is_one_half():
    chosen, rejected = labelled()
    swapped = [(b, a) if i % 2 else (a, b) for i, (a, b) in enumerate(zip(chosen, rejected, strict=True))]
    found = explain_labels(*zip(*swapped, strict=True))
    assert found.interval[0] < 0.5 < found.interval[1]


def pair(one, other, prompt="a"):
    return Response("0", prompt, "", features=one), Response("0", prompt, "", features=other)


def test_what_a_response_lacks_is_left_out():
    pairs = [pair({"x": 2.0}, {"x": 1.0}), pair({"x": 2.0, "y": 1.0}, {"y": 1.0}), pair({}, None)]
    found = explain_labels(*zip(*pairs, strict=True))
    assert (found.pairs, found.accuracy) == (2, None)
    assert {name: (one.pairs, one.agreement) for name, one in found.features.items()} == {"x": (1, 1.0), "y": (1, 0.5)}
    assert found.features["x"].weight > 0 == found.features["y"].weight


def test_a_reward_without_features_explains_nothing():
    with pytest.raises(UserError, match="this one tells none of its scores"):
        explain_labels(*zip(pair(None, None), strict=True))
