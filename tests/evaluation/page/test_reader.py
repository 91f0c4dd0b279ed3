import json
from pathlib import Path

from lit_tr.evaluation.page import Comparison, Found
from lit_tr.evaluation.page.reader import TIE, UNPARSABLE, as_json, as_text, reader
from tests.evaluation.page.folders import judgement, response


def comparison(*rows, a="policy", b="initial"):
    return Comparison(Path("judged"), {"a": {"name": a}, "b": {"name": b}, "criteria": {}}, rows)


def test_responses_stand_side_by_side_and_the_judge_says_who_won():
    policy = [response(i, f"new {i}", "policy") for i in range(4)]
    initial = [response(i, f"old {i}", "initial") for i in range(4)]
    preferences = [0.9, 0.1, 0.5, None]
    rows = [judgement(i, f"new {i}", f"old {i}", preference) for i, preference in enumerate(preferences)]
    data = reader(Found([], [comparison(*rows)], {"initial": initial, "policy": policy}), 10)
    assert data["policies"] == ["policy", "initial"]  # as they were compared
    assert data["contests"] == [{"criterion": "overall", "names": ["policy", "initial"]}]
    assert [row["won"]["0"] for row in data["rows"]] == [0, 1, TIE, UNPARSABLE]
    assert data["rows"][1]["responses"] == {"0": {"response": "new 1"}, "1": {"response": "old 1"}}


def test_a_contest_by_score_is_among_all_policies_that_have_one():
    rows = {
        "a": [response(0, "x", "a", score=1.0), response(1, "x", "a", score=2.0)],
        "b": [response(0, "y", "b", score=3.0), response(1, "y", "b", score=2.0)],
        "c": [response(0, "z", "c")],
    }
    data = reader(Found([], [], rows), 10)
    assert data["contests"] == [{"criterion": "score", "names": ["a", "b"]}]
    assert [row["won"]["0"] for row in data["rows"]] == [1, TIE]


def test_judged_responses_without_a_file_are_shown_and_two_of_one_name_are_kept_apart():
    first, second = comparison(judgement(0, "one", "old", 1.0)), comparison(judgement(0, "two", "old", 1.0))
    data = reader(Found([], [first, second], {}), 10)
    assert data["policies"] == ["policy", "initial", "policy (judged)"]
    assert [one["response"] for one in data["rows"][0]["responses"].values()] == ["one", "old", "two"]
    assert [one["names"] for one in data["contests"]] == [["policy", "initial"], ["policy (judged)", "initial"]]


def test_prompts_are_limited_and_counted_with_all_their_samples():
    rows = [response(i, f"{i} {k}", "policy", sample=k) for k in range(2) for i in range(5)]
    data = reader(Found([], [], {"policy": rows}), 3)
    assert [(row["id"], row["sample"]) for row in data["rows"]] == [(str(i), k) for k in range(2) for i in range(3)]
    assert data["total"] == 5


def test_implicit_rewards_are_scaled_by_the_size_that_a_tenth_passes():
    tokens = [[f"t{i}", (-1) ** i * i / 10] for i in range(11)]
    data = reader(Found([], [], {"policy": [response(0, "t", "policy", token_rewards=tokens)]}), 1)
    assert data["scale"] == 0.9
    assert data["rows"][0]["responses"]["0"]["token_rewards"][3] == ["t3", -0.3]


def test_figures_that_json_cannot_hold_are_left_out():
    row = response(0, "r", "policy", score=float("nan"), kl=float("inf"), tokens=3, token_rewards=[["a", float("nan")]])
    data = reader(Found([], [], {"policy": [row]}), 1)
    assert data["rows"][0]["responses"]["0"] == {"response": "r", "tokens": 3}
    as_json(data)


def test_no_text_can_end_the_element_that_holds_the_data():
    text = "</script><script>alert(1)</script><!-- & \u2028"
    written = as_json({"text": text})
    assert "<" not in written
    assert json.loads(written) == {"text": text}


def test_messages_are_shown_with_their_roles():
    assert (
        as_text([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}])
        == "user: Hi\nassistant: Ho"
    )


def test_features_of_scores_are_shown():
    row = response(0, "r", "policy", score=2.0, features={"length": 0.1, "relevance": float("nan")})
    [shown] = reader(Found([], [], {"policy": [row]}), 1)["rows"]
    assert shown["responses"]["0"] == {"response": "r", "score": 2.0, "features": {"length": 0.1}}
