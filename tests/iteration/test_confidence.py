import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from lit_tr import PreferenceDataModule
from lit_tr.data import Rows
from lit_tr.errors import UserError
from lit_tr.evaluation.responses import Response
from lit_tr.iteration import AllPairs, MaxMin, RankAgreement, Votes, scored_pair
from lit_tr.iteration.confidence import consistency
from lit_tr.losses import DPO
from lit_tr.policy import PretrainedPolicy
from lit_tr.reference import FrozenReference
from lit_tr.scoring import Scorer

ASK = "Describe a cold river."
THEIRS = {"a": 0.3, "b": 0.1, "c": 0.2, "d": 5.0, "e": 4.0, "x": math.nan}


def theirs(prompt, response):
    return THEIRS[response]


def candidates(prompt, **scores):
    return [Response(prompt, ASK, text, i, score=score) for i, (text, score) in enumerate(scores.items())]


FIRST = candidates("p", a=3.0, b=2.0, c=1.0)  # the others say a, c, b: one of three pairs is turned round, tau 1/3
SECOND = candidates("q", d=1.0, e=2.0)  # turned round, tau -1


@pytest.mark.parametrize(("per", "expected"), [("set", [1 / 3, 1 / 3]), ("prompt", [2 / 3, 0.0])])
def test_consistency_of_two_rankings_by_hand(per, expected):
    """CREAM: C = (tau + 1) / 2, of each prompt 2/3 and 0, on average 1/3."""
    known = [*FIRST, *SECOND]
    found = RankAgreement(theirs, per)(MaxMin()(known), known)
    assert [one.confidence for one in found.found] == pytest.approx(expected)


@given(st.permutations(range(6)), st.permutations(range(6)))
def test_consistency_is_kendalls_tau(ours, theirs):
    assert consistency(ours, theirs) == pytest.approx((kendalltau(ours, theirs).statistic + 1) / 2)
    assert consistency(ours, ours) == pytest.approx(1)
    assert consistency(ours, [-one for one in ours]) == pytest.approx(0, abs=1e-12)


def test_equal_scores_keep_the_order_of_the_candidates():
    """Ordinal ranks, as in CREAM: 1, 2, 3 against 1, 3, 2 has tau 1/3."""
    assert consistency([1.0, 1.0, 1.0], [1.0, 3.0, 2.0]) == pytest.approx(2 / 3)


def test_candidates_without_a_score_are_in_no_ranking():
    known = [*candidates("p", a=3.0, x=2.5, b=2.0, c=None), *candidates("q", d=1.0, x=2.0)]
    found = RankAgreement(theirs, "prompt")(MaxMin()(known), known)
    assert [one.confidence for one in found.found] == [1.0, 1.0]  # a and b agree; of q nothing is known: the mean
    with pytest.raises(UserError, match="RankAgreement: theirs scores no two candidates of any prompt"):
        RankAgreement(theirs)(MaxMin()(known[-2:]), known[-2:])


def test_rewards_are_asked_through_what_keeps_their_scores():
    asked = []

    def score(reward, those):
        asked.append((reward, [one.response for one in those]))
        return [THEIRS[one.response] for one in those]

    known = [*FIRST, *candidates("q", d=None, e=2.0)]
    RankAgreement(theirs)(MaxMin()(known), known, score)
    assert asked == [(theirs, ["a", "b", "c", "e"])]
    asked.clear()
    Votes([theirs, float])(MaxMin()(known), known, score)
    assert asked == [(theirs, ["a", "c"]), (float, ["a", "c"])]  # of the pair alone


def judge(**scores):
    return lambda prompt, response: scores.get(response, math.nan)


def test_votes_by_hand():
    """Of three judges one prefers the chosen response, one neither, one the other: 1/2; without the tie's 1/2, 3/4."""
    [pair], known = MaxMin()(FIRST).found, FIRST
    assert (pair.chosen, pair.rejected) == ("a", "c")
    several = [judge(a=2, c=1), judge(a=1, c=1), judge(a=1, c=2), judge(a=1)]
    assert Votes(several)(MaxMin()(known), known).found[0].confidence == 0.5
    assert Votes([several[0], several[1]])(MaxMin()(known), known).found[0].confidence == 0.75
    assert Votes([several[0], several[3]])(MaxMin()(known), known).found[0].confidence == 1.0
    assert Votes([several[3], several[3]])(MaxMin()(known), known).found[0].confidence == 0.5
    with pytest.raises(UserError, match="give two judges or more"):
        Votes([judge(a=1)])


def test_votes_of_each_pair():
    found = Votes([judge(a=3, b=2, c=1), judge(a=1, b=2, c=3)])(AllPairs()(FIRST), FIRST)
    assert [one.confidence for one in found.found] == [0.5, 0.5, 0.5]


def test_the_loss_of_a_pair_is_that_of_both_labels_by_its_confidence(tmp_path, llama_dir):
    """CREAM: C * L(w, l) + (1 - C) * L(l, w), from candidates over the file of pairs to the loss that is trained."""
    known = [*FIRST, *SECOND]
    pairs = RankAgreement(theirs, "prompt")(MaxMin()(known), known)
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps(one.row) + "\n" for one in pairs.found))
    data = PreferenceDataModule(llama_dir, Rows(str(file), format=scored_pair), batch_size=2)
    data.setup("fit")
    [batch] = data.train_dataloader()
    policy, reference = PretrainedPolicy(llama_dir).load().eval(), FrozenReference()
    reference.prepare(policy)
    with torch.no_grad():
        for param in policy.parameters():
            param += 0.1 * torch.randn(param.shape, generator=torch.Generator().manual_seed(param.dim()))
        found = Scorer(DPO(beta=0.5)).values(policy, reference, None, batch, lambda sums: sums, training=False)
    confidence = batch.split_labels()[0]["confidence"].tolist()
    assert sorted(confidence) == pytest.approx([0, 2 / 3])
    margins = found["rewards/margins"].tolist()  # beta * (log-ratio of w - log-ratio of l)
    assert min(map(abs, margins)) > 0.1
    right, wrong = ([math.log(1 + math.exp(-sign * one)) for one in margins] for sign in (1, -1))
    expected = [c * ours + (1 - c) * theirs for c, ours, theirs in zip(confidence, right, wrong, strict=True)]
    assert found["loss"].tolist() == pytest.approx(expected, rel=1e-5)
