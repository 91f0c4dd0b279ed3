from dataclasses import replace

import pytest

from lit_tr.errors import UserError
from lit_tr.evaluation.responses import Response
from lit_tr.iteration import MaxMin, Stop
from lit_tr.iteration.figures import exploited, line, lines, no_pairs, of_candidates, said

ASK = "Describe a cold river."


@pytest.mark.parametrize(
    ("stop", "done", "why"),
    [
        (Stop(), [(10, 0), (99, 99)], None),
        (Stop(length=2), [(10, 0), (20, 1)], None),
        (
            Stop(length=2),
            [(10, 0), (21, 1)],
            "responses are 2.10 times as long as those of the initial policy",
        ),
        (Stop(length=2), [(10, 0), (21, 1), (19, 2)], None),  # the last round counts
        (Stop(kl=1.5), [(10, 0), (10, 1.5)], None),
        (Stop(kl=1.5), [(10, 0), (10, 1.625)], "the policy is 1.62 nats per response from the initial one"),
        (Stop(length=2, kl=1.5), [(10, 0), (30, 2)], "3.00 times"),
    ],
)
def test_rounds_end_by_length_or_divergence(stop, done, why):
    found = stop.why([{"length": length, "kl": kl} for length, kl in done])
    assert found is None if why is None else why in found


@pytest.mark.parametrize("name", ["length", "kl"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_limits_are_above_0(name, value):
    with pytest.raises(UserError, match=f"stop.{name} must be above 0"):
        Stop(**{name: value})


def figures(number, reward, truth=None, error=0.1):
    found = {"round": number, "reward": reward, "reward_standard_error": error}
    return found if truth is None else found | {"truth": truth, "truth_standard_error": error}


def test_a_reward_that_rises_while_the_truth_falls_is_exploited():
    """Errors of 0.1 each make 0.141 of the difference: 0.3 is beyond two of them, and 0.28 is not."""
    rises = [figures(0, 1.0, 1.0), figures(1, 1.3, 1.3)]
    assert exploited(rises) is None
    assert exploited([*rises, figures(2, 1.6, 1.0)]) == 2
    assert exploited([*rises, figures(2, 1.6, 1.02)]) is None
    assert exploited([*rises, figures(2, 1.58, 1.0)]) is None
    assert exploited([figures(0, 1.0), figures(1, 9.0)]) is None  # nobody knows
    without_errors = [{"round": i, "reward": float(i), "truth": -float(i)} for i in range(3)]
    assert exploited(without_errors) is None


def test_the_line_of_a_round_is_by_the_truth_where_there_is_one():
    found = figures(2, 1.0, 0.5) | {"kl": 3.0, "kl_standard_error": 0.2, "length": 20.0, "truth_unscored": 1}
    found |= {"truth_win_rate": 0.9, "truth_initial_win_rate": 0.7, "truth_initial_win_rate_interval": [0.6, 0.8]}
    found |= {"reward_initial_win_rate": 0.1}
    kl = {"kl": 3.0, "kl_standard_error": 0.2, "length": 20.0}
    assert line(found) == {
        **{"step": 2, "label": "policy", **kl, "score": 0.5, "score_standard_error": 0.1, "unscored": 1},
        **{"win_rate": 0.7, "win_rate_interval": [0.6, 0.8]},  # over the initial policy, as reports take it
        **{"proxy": 1.0, "proxy_standard_error": 0.1},
    }
    assert line(figures(0, 1.0) | kl) == {
        "step": 0,
        "label": "initial",
        **kl,
        "score": 1.0,
        "score_standard_error": 0.1,
    }


def test_the_line_of_the_first_round_that_exploits_the_reward_says_so():
    kl = {"kl": 3.0, "kl_standard_error": 0.2, "length": 20.0}
    done = [figures(i, float(i), truth) | kl for i, truth in enumerate([1.0, 2.0, 1.0, 0.0])]
    assert [one.get("exploited") for one in lines(done)] == [None, None, True, None]
    assert [one.get("exploited") for one in lines(done[:2])] == [None, None]


def candidates(name, *scores):
    return [Response(name, ASK, f"{'x' * i}.", i, score=score) for i, score in enumerate(scores)]


def test_what_is_said_of_candidates_and_pairs():
    known = [*candidates("a", 1.0, 3.0, None), *candidates("b", 2.0, 1.0), *candidates("c", 0.0, 0.0)]
    pairs = MaxMin()(known)
    found = of_candidates(known, pairs)
    assert found == {
        **{"candidates": 7, "mean_score": 7 / 6, "pairs": 2, "prompts": 3, "unscored": 1, "too_few": 0, "ties": 1},
        **{"close": 0, "confidence": 1.0, "longer_chosen": 0.5},
    }
    assert said(found) == (
        "2 pairs of 3 prompts (1 tied left out), 1 of 7 candidates have no score, the chosen response is longer in 50%"
    )
    assert "mean confidence 0.75" in said(found | {"confidence": 0.75})
    judged = [replace(one, features={"unread": number % 2}) for number, one in enumerate(known)]
    assert ", 3 judgements cannot be read, " in said(of_candidates(judged, pairs))
    nothing = MaxMin()([*candidates("c", 0.0, 0.0), *candidates("d", None)])
    assert "candidates of 2 prompts (1 tied, 1 without two scored candidates that differ)" in no_pairs(1, nothing, "x")
