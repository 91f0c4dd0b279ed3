from math import nan

import pytest
import torch
from scipy.stats import sem

from lit_tr.data.tokenization import TokenizedExample
from lit_tr.evaluation.generate import Generation
from lit_tr.evaluation.held_out import Evaluation, of_pairs, score
from lit_tr.evaluation.intervals import wilson
from lit_tr.losses import DPO, Scores


def test_scores_by_hand():
    examples = [TokenizedExample([1], [2, 3], [4]), TokenizedExample([5], [6], [7])]
    chosen, rejected = score(examples, lambda batch: batch.input_ids[:, 0].float(), lambda batch: torch.ones(4))
    assert chosen.policy.tolist() == rejected.policy.tolist() == [1, 5]
    assert chosen.tokens.tolist() == [2, 1]
    assert rejected.log_ratios.tolist() == [0, 4]


@pytest.mark.parametrize("packed", [False, True])
def test_scores_of_many_batches_are_in_order(packed):
    examples = [TokenizedExample([i], [2], [3, 4]) for i in range(70)]

    def starts(batch):
        tokens = batch.padded() if packed else batch
        return tokens.input_ids[:, 0].float()

    chosen, rejected = score(examples, starts, lambda batch: torch.zeros(len(batch.sizes)), packed=packed)
    assert chosen.policy.tolist() == rejected.policy.tolist() == list(range(70))
    assert rejected.tokens.tolist() == [2] * 70


def test_what_pairs_say_by_hand():
    tokens = torch.ones(3)
    chosen = Scores(torch.tensor([-1.0, -3.0, -6.0]), tokens, torch.tensor([-2.0, -2.0, -2.0]))
    rejected = Scores(torch.tensor([-4.0, -2.0, -6.0]), tokens, torch.tensor([-2.0, -2.0, -2.0]))
    found = of_pairs(DPO(beta=0.5), chosen, rejected)
    assert found["log_ratio_chosen"] == pytest.approx((1 - 1 - 4) / 3)
    assert found["log_ratio_rejected"] == pytest.approx((-2 + 0 - 4) / 3)
    assert found["log_ratio_rejected_standard_error"] == pytest.approx(sem([-2, 0, -4]))
    assert found["margin"] == pytest.approx(0.5 * (3 - 1 + 0) / 3)
    assert found["accuracy"] == 0.5  # right, wrong, tied


def test_unpaired_rows_have_log_ratios_alone():
    none = Scores(torch.zeros(0), torch.zeros(0), torch.zeros(0))
    found = of_pairs(DPO(), Scores(torch.zeros(2), torch.ones(2), torch.ones(2)), none)
    assert found == {"log_ratio_chosen": -1, "log_ratio_chosen_standard_error": 0}


def evaluation(scores, prompts):
    return Evaluation([Generation([p], [0], "", "") for p in prompts], scores, None, {})


def test_win_rate_over_prompts_by_hand():
    ours = evaluation([3.0, 1.0, 2.0, 5.0, nan], [7, 7, 8, 9, 10])
    found = ours.win_rate([2.0, 2.0, 2.0, nan, 0.0])
    assert found["win_rate"] == 0.5  # of prompt 7 one of two, of prompt 8 a tie; of the others nothing is known
    assert found["win_rate_interval"] == pytest.approx(wilson(1, 2))
    assert evaluation([nan], [1]).win_rate([1.0]) == {}
