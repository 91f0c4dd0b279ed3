"""Reward goals and user weights, by hand."""

import math

import pytest

from lit_tr.data import Objects, PreferenceDataModule
from lit_tr.data.example import Example
from lit_tr.data.formats import Conversion, RewardGoals, UltraFeedback, UserWeights, unpaired
from lit_tr.embedded import TINY
from lit_tr.errors import BadRowError, UserError

PAIR = {"prompt": "1 + 1?", "chosen": "2", "rejected": "3"}
CHAT = [{"role": "user", "content": "1 + 1?"}]
SYSTEM = {"role": "system", "content": "Be brief."}


def shown(examples):
    return [(one.system, one.chosen, one.rejected, one.margin) for one in examples]


def test_a_pair_comes_once_under_each_of_its_scores():
    found = RewardGoals()({**PAIR, "score_chosen": 8.26, "score_rejected": "5"})
    assert shown(found) == [
        ("Write a response that is rated 8.3.", "2", "3", pytest.approx(3.26)),
        ("Write a response that is rated 5.", "3", "2", pytest.approx(3.26)),
    ]


def test_the_score_orders_the_pair_where_the_label_says_otherwise():
    found = RewardGoals(text="Goal: {score}", decimals=0)({**PAIR, "score_chosen": 1, "score_rejected": 4})
    assert shown(found) == [("Goal: 1", "2", "3", 3.0), ("Goal: 4", "3", "2", 3.0)]


def test_of_equal_scores_the_label_alone_counts():
    found = RewardGoals(decimals=0)({**PAIR, "score_chosen": 4.1, "score_rejected": 4.2})
    assert shown(found) == [("Write a response that is rated 4.", "2", "3", pytest.approx(0.1))]


def test_a_system_prompt_is_added_to():
    row = {**PAIR, "score_chosen": 2, "score_rejected": 1}
    goal = "Write a response that is rated 2."
    [one, _] = RewardGoals()({**row, "system": "Be brief."})
    assert one.system == f"Be brief.\n\n{goal}"
    [one, _] = RewardGoals()({**row, "prompt": CHAT})
    assert one.prompt == [{"role": "system", "content": goal}, *CHAT]
    [one, _] = RewardGoals()({**row, "prompt": [SYSTEM, *CHAT]})
    assert one.prompt == [{"role": "system", "content": f"Be brief.\n\n{goal}"}, *CHAT]
    assert one.as_messages().prompt == one.prompt


def quiz(row):
    return Example("1 + 1?", row["right"], row["wrong"], confidence=0.7, labels={"weight": (1.0, 2.0)})


def test_any_format_makes_the_pair_and_labels_go_with_the_responses():
    goals = RewardGoals(format=quiz, scores=("good", "bad"))
    one, other = goals({"right": "2", "wrong": "3", "good": 1, "bad": 0})
    assert (one.labels, other.labels) == ({"weight": (1.0, 2.0)}, {"weight": (2.0, 1.0)})
    assert (one.confidence, other.confidence) == (1.0, 1.0)  # the scores are certain
    rated = {"instruction": "1 + 1?", "completions": [{"response": "2", "annotations": {"a": {"Rating": "5"}}}]}
    rated["completions"].append({"response": "3", "annotations": {"a": {"Rating": "1"}}})
    assert len(RewardGoals(UltraFeedback())({**rated, "score_chosen": 5, "score_rejected": 1})) == 2


OBJECTIVES = {"helpfulness": (1.0, 1.0), "verbosity": (-1.0, 1.0)}
SCORED = {"helpfulness_chosen": 3, "helpfulness_rejected": 2, "verbosity_chosen": 9, "verbosity_rejected": 4}


def test_the_weighted_scores_order_the_pair():
    format = UserWeights(OBJECTIVES, draws=200, text="{weights}")
    found = format({**PAIR, **SCORED})
    assert len(found) == 200
    orders = set()
    for one in found:
        words = one.system.split(", ")
        helpful, verbose = (int(word.split()[1]) / 100 for word in words)
        assert [word.split()[0] for word in words] == ["helpfulness", "verbosity"]
        assert math.hypot(helpful, verbose) == pytest.approx(1, abs=0.01)
        assert abs(verbose) <= 0.71
        value = helpful * 1 + verbose * 5  # the differences of the scores
        assert one.margin == pytest.approx(abs(value), abs=0.04)
        if one.margin > 0.05:
            assert (one.chosen, one.rejected) == (("2", "3") if value > 0 else ("3", "2"))
            orders.add(one.chosen)
    assert orders == {"2", "3"}
    assert format({**PAIR, **SCORED}) == found
    assert UserWeights(OBJECTIVES, draws=200, text="{weights}", seed=1)({**PAIR, **SCORED}) != found
    assert format.said({"helpfulness": 0.8, "verbosity": -0.6}) == "helpfulness 80, verbosity -60"


@pytest.mark.parametrize(
    ("format", "row", "said"),
    [
        (RewardGoals(), PAIR, "no 'score_chosen'"),
        (RewardGoals(), {**PAIR, "score_chosen": "good", "score_rejected": 1}, "'score_chosen' is not a number"),
        (RewardGoals(), {"prompt": "a", "score_chosen": 2, "score_rejected": 1}, "unknown format"),
        (
            RewardGoals(unpaired),
            {"prompt": "a", "completion": "b", "label": True, "score_chosen": 2, "score_rejected": 1},
            "the row is no pair",
        ),
        (UserWeights(OBJECTIVES), PAIR, "no 'helpfulness_chosen'"),
        (UserWeights({"a": (1, 1)}), {**PAIR, "a_chosen": 1, "a_rejected": 1}, "both responses are equal"),
    ],
)
def test_a_row_that_lacks_something_is_a_bad_row(format, row, said):
    with pytest.raises(BadRowError, match=said):
        Conversion(format)(row)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: RewardGoals(text="Be good."), "must have the slot {score}"),
        (lambda: UserWeights(OBJECTIVES, text="Be good."), "must have the slot {weights}"),
        (lambda: UserWeights({"a": (1, 0)}), "the lower number first"),
        (lambda: UserWeights({"a": (0, 0)}), "whose weight is not always 0"),
        (lambda: UserWeights({}), "whose weight is not always 0"),
        (lambda: UserWeights(OBJECTIVES, draws=0), "draws of at least 1"),
    ],
)
def test_options_out_of_their_range(make, said):
    with pytest.raises(UserError, match=said):
        make()


def test_it_is_trained_on(tokenizer):
    rows = [{**PAIR, "prompt": text, "score_chosen": 2, "score_rejected": 1} for text in ("1 + 1?", "2?")]
    data = PreferenceDataModule(TINY, Objects(rows, format=RewardGoals(), chat=False), batch_size=4)
    data.prepare_data()
    data.setup("fit")
    texts = [tuple(map(tokenizer.decode, (one.prompt, one.chosen))) for one in data.examples["train"]]
    assert len(texts) == 4
    assert ("Write a response that is rated 1.\n\n1 + 1?", f"3{tokenizer.eos_token}") in texts
