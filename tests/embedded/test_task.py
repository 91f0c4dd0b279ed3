import math
import random
from dataclasses import astuple

import pytest

from lit_tr.embedded.task import Features, GoldReward, SyntheticPairs, sample_instruction, sample_response
from lit_tr.errors import UserError

ASK = "Describe a cold river."


@pytest.mark.parametrize(
    ("response", "features"),
    [
        ("The river is icy. It looks frozen and cold.", (1, 1.0, 0.0, 0.0)),
        ("The forest is icy. It looks frozen and cold.", (-1, 1.0, 0.0, 0.0)),
        ("The river is icy. The forest is hot. It seems so.", (-1, 0.0, 0.0, 0.0)),  # one of 2 consistent, one opposite
        ("It looks burning. It looks burning. It seems warm to me.", (0, -1.0, 1 / 3, 0.0)),
        ("The river is icy. It looks loud and clean. It seems so.", (1, 1 / 3, 0.0, 0.0)),  # of 3 words 1 is consistent
        ("It seems icy.", (0, 1.0, 0.0, 5 / 12)),  # 3 words, 5 short of 8
        ("", (0, 0.0, 0.0, 8 / 12)),
        ("The river is icy. " + "It is so. " * 12, (1, 1.0, 1 - 2 / 13, 1.0)),  # 40 words, 24 above 16
    ],
)
def test_features_by_hand(response, features):
    assert astuple(Features.of(ASK, response)) == pytest.approx(features)


def test_reward_is_the_weighted_sum():
    # subject 0, attribute -1, repetition 1/3, length 0
    assert GoldReward()(ASK, "It looks burning. It looks burning. It seems warm to me.") == pytest.approx(-2 - 3 / 3)


def test_rows_are_seeded():
    first, again, other = ([row for _, row in SyntheticPairs(20, seed).rows()] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_flipped_pairs_are_the_same_pairs_the_other_way_round():
    clean, noisy = ([row for _, row in SyntheticPairs(2000, seed=3, flipped=share).rows()] for share in (0.0, 0.2))
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in clean]
    assert all(noisy[i] in (clean[i], turned[i]) for i in range(2000))
    flipped = sum(a != b for a, b in zip(clean, noisy, strict=True))
    assert abs(flipped - 400) < 4 * (2000 * 0.2 * 0.8) ** 0.5
    assert [row for _, row in SyntheticPairs(5, flipped=1.0).rows()] == [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} for _, row in SyntheticPairs(5).rows()
    ]


def test_held_out_instructions_are_none_of_the_others():
    ours, kept = (
        {row["prompt"] for _, row in SyntheticPairs(2000, held_out=held_out).rows()} for held_out in (False, True)
    )
    assert not ours & kept
    assert 0.1 < len(kept) / len(ours | kept) < 0.3


def test_labels_follow_bradley_terry():
    """The log-likelihood of the labels under the model is what a right sampler would give, within 4 standard errors."""
    reward = GoldReward()
    margins = [
        reward(row["prompt"], row["chosen"]) - reward(row["prompt"], row["rejected"])
        for _, row in SyntheticPairs(4000, seed=3).rows()
    ]
    excess = 0.0
    variance = 0.0
    for margin in margins:
        probability = 1 / (1 + math.exp(-abs(margin)))  # that the better one is preferred
        excess += (margin > 0) - probability if margin else 0.0
        variance += probability * (1 - probability) if margin else 0.0
    assert abs(excess) < 4 * math.sqrt(variance)


def test_temperature_zero_prefers_the_better_one_always():
    reward = GoldReward()
    for _, row in SyntheticPairs(200, temperature=0).rows():
        assert reward(row["prompt"], row["chosen"]) >= reward(row["prompt"], row["rejected"])


def test_responses_are_good_and_bad():
    draw = random.Random(0)
    asks = [sample_instruction(draw) for _ in range(500)]
    rewards = [GoldReward()(ask, sample_response(ask, draw)) for ask in asks]
    assert min(rewards) < -3
    assert max(rewards) == pytest.approx(4)  # the right subject, consistent, nothing twice, of good length


@pytest.mark.parametrize("arguments", [{"size": 0}, {"temperature": -1}])
def test_bad_arguments_are_named(arguments):
    with pytest.raises(UserError, match="size must be at least 1"):
        SyntheticPairs(**arguments)


def test_a_foreign_instruction_is_an_error():
    with pytest.raises(UserError, match="no instruction of the embedded task"):
        GoldReward()("Write a poem.", "No.")
