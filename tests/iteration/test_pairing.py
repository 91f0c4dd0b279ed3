from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_tr.errors import BadRowError, UserError
from lit_tr.evaluation.responses import Response
from lit_tr.iteration import AllPairs, MaxMin, MaxRandom, scored_pair
from lit_tr.iteration.pairing import with_confidence

ASK = "Describe a cold river."
KINDS = [MaxMin, MaxRandom, AllPairs]


def candidates(*scores, prompt="p", texts="abcdefgh", tokens=None):
    """Candidates of one prompt, the texts of which are letters, with scores."""
    return [
        Response(prompt, ASK, text, i, "round_0", tokens[i] if tokens else None, score=score)
        for i, (score, text) in enumerate(zip(scores, texts, strict=False))
    ]


def texts(pairs):
    return [(one.chosen, one.rejected) for one in pairs.found]


def test_the_best_against_the_worst():
    pairs = MaxMin()([*candidates(2.0, 5.0, 1.0, 3.0), *candidates(1.0, 2.0, prompt="q")])
    assert texts(pairs) == [("b", "c"), ("b", "a")]
    first = pairs.found[0]
    assert (first.id, first.prompt, first.score_chosen, first.score_rejected, first.confidence) == ("p", ASK, 5, 1, 1)
    assert (first.policy_chosen, first.policy_rejected) == ("round_0", "round_0")
    assert pairs.counts == {"pairs": 2, "prompts": 2, "unscored": 0, "too_few": 0, "ties": 0, "close": 0}


def test_each_two_of_unequal_scores():
    pairs = AllPairs()(candidates(1.0, 2.0, 2.0, 3.0))
    assert texts(pairs) == [("d", "b"), ("d", "c"), ("d", "a"), ("b", "a"), ("c", "a")]


def test_the_best_against_one_of_the_worse_by_a_seed():
    scored = candidates(1.0, 4.0, 2.0, 3.0, 4.0)
    found = {texts(MaxRandom(seed=seed)(scored))[0] for seed in range(40)}
    assert found == {("b", "a"), ("b", "c"), ("b", "d")}  # of equal best ones the first, and never the other one
    assert MaxRandom(seed=3)(scored) == MaxRandom(seed=3)(scored)
    by_margin = {texts(MaxRandom(seed=seed, least_margin=2.0)(scored))[0] for seed in range(40)}
    assert by_margin == {("b", "a"), ("b", "c")}


@pytest.mark.parametrize("kind", KINDS)
def test_what_makes_no_pair_is_counted_by_its_reason(kind):
    """An unparsable judgement was once taken for the worst score: field.md B.1's reproductions."""
    several = [
        *candidates(3.0, None, 1.0, prompt="unparsable"),
        *candidates(2.0, None, prompt="one left"),
        *candidates(2.0, 2.0, 2.0, prompt="tie"),
        *candidates(2.0, 1.0, texts=["same", " same\n"], prompt="equal texts"),
        *candidates(2.0, 1.75, prompt="close"),
    ]
    pairs = kind(least_margin=0.5)(several)
    assert texts(pairs) == [("a", "c")]
    assert pairs.counts == {"pairs": 1, "prompts": 5, "unscored": 2, "too_few": 2, "ties": 1, "close": 1}
    assert kind()(candidates(None, None)).counts["too_few"] == 1


def test_of_equal_texts_the_first_counts():
    pairs = MaxMin()(candidates(2.0, 9.0, 1.0, texts=["same", "same ", "other"]))
    assert texts(pairs) == [("same", "other")]
    assert pairs.found[0].score_chosen == 2.0


def test_length_takes_from_the_score():
    """Of 4 - 0.25 * 12 = 1 and 3 - 0.25 * 2 = 2.5 the shorter one is better; without tokens, characters count."""
    pairs = MaxMin(length_penalty=0.25)(candidates(4.0, 3.0, tokens=[12, 2]))
    assert texts(pairs) == [("b", "a")]
    assert (pairs.found[0].score_chosen, pairs.found[0].score_rejected) == (2.5, 1.0)
    by_characters = MaxMin(length_penalty=0.25)(candidates(4.0, 3.0, texts=["a" * 12, "bb"]))
    assert (by_characters.found[0].score_chosen, by_characters.found[0].score_rejected) == (2.5, 1.0)
    assert texts(MaxMin()(candidates(4.0, 3.0, tokens=[12, 2]))) == [("a", "b")]


def test_a_response_that_was_cut_is_worth_less():
    scored = [Response("p", ASK, text, i, score=3.0 - i, finished=i > 0) for i, text in enumerate("ab")]
    assert texts(MaxMin()(scored)) == [("a", "b")]
    [pair] = MaxMin(missing_eos_penalty=1.5)(scored).found
    assert (pair.chosen, pair.score_chosen, pair.score_rejected) == ("b", 2.0, 1.5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("option", ["least_margin", "length_penalty", "missing_eos_penalty"])
def test_negative_numbers_are_refused(kind, option):
    with pytest.raises(UserError, match=f"{kind.__name__}: least_margin and penalties must not be negative"):
        kind(**{option: -1.0})


SCORES = st.one_of(st.none(), st.floats(-5, 5), st.sampled_from([0.0, 1.0]))
CANDIDATES = st.lists(
    st.tuples(st.sampled_from("pqr"), st.sampled_from(["a", "b ", "b", "c", "d"]), SCORES), max_size=12
)


@given(rows=CANDIDATES, kind=st.sampled_from(KINDS), margin=st.sampled_from([0.0, 1.0]))
def test_any_candidates_make_pairs_in_order_or_are_counted(rows, kind, margin):
    scored = [Response(name, ASK, text, i, score=score) for i, (name, text, score) in enumerate(rows)]
    pairs = kind(least_margin=margin)(scored)
    known = {(one.id, one.response, one.score) for one in scored}
    for one in pairs.found:
        assert (one.id, one.chosen, one.score_chosen) in known
        assert (one.id, one.rejected, one.score_rejected) in known
        assert one.chosen.strip() != one.rejected.strip()
        assert one.score_chosen > one.score_rejected
        assert one.score_chosen - one.score_rejected >= margin
    counts = pairs.counts
    assert counts["prompts"] == len({one.id for one in scored})
    with_pairs = len({one.id for one in pairs.found})
    assert counts["prompts"] == with_pairs + counts["too_few"] + counts["ties"] + counts["close"]
    assert counts["unscored"] == sum(one.score is None for one in scored)


@given(scores=st.lists(st.integers(0, 5), min_size=2, max_size=7, unique=True))
def test_pairs_of_unequal_scores_are_those_of_brute_force(scores):
    scored = candidates(*map(float, scores))
    by_letter = dict(zip("abcdefgh", scores, strict=False))
    both = {tuple(sorted(two, key=lambda one: -by_letter[one])) for two in combinations("abcdefgh"[: len(scores)], 2)}
    assert {*texts(AllPairs()(scored))} == both
    best, worst = max(by_letter, key=by_letter.get), min(by_letter, key=by_letter.get)
    assert texts(MaxMin()(scored)) == [(best, worst)]
    assert texts(MaxRandom()(scored))[0] in {one for one in both if one[0] == best}


def test_a_row_is_an_example_with_margin_confidence_and_who_wrote_it():
    [pair] = MaxMin()(candidates(5.0, 1.5)).found
    example = scored_pair(replace(pair, confidence=0.75).row)
    assert (example.prompt, example.chosen, example.rejected) == (ASK, "a", "b")
    assert (example.margin, example.confidence, example.labels) == (3.5, 0.75, {"sampled": (1.0, 1.0)})
    other = scored_pair(replace(pair, policy_rejected="other: {initial}").row)
    assert other.labels == {"sampled": (1.0, 0.0)}


def test_responses_to_messages_are_messages():
    chat = [{"role": "user", "content": ASK}]
    [pair] = MaxMin()([replace(one, prompt=chat) for one in candidates(5.0, 1.5)]).found
    example = scored_pair(pair.row)
    assert example.prompt == chat
    assert example.chosen == [{"role": "assistant", "content": "a"}]
    assert example.rejected == [{"role": "assistant", "content": "b"}]


def test_another_row_is_a_bad_one():
    with pytest.raises(BadRowError, match="it is no pair of a round"):
        scored_pair({"prompt": ASK, "chosen": "a", "rejected": "b"})


def test_confidences_are_put_in_order():
    pairs = AllPairs()(candidates(1.0, 2.0, 3.0))
    found = with_confidence(pairs, [0.1, 0.2, 0.3])
    assert [one.confidence for one in found.found] == [0.1, 0.2, 0.3]
    assert texts(found) == texts(pairs)
    assert found.counts == pairs.counts
