from dataclasses import replace

import torch
import torch.nn.functional as F

from lit_tr.losses import DPO, HyPO
from tests.losses.examples import CHOSEN, drawn, equal, gives, log_sigmoid, sigmoid


def test_by_hand():
    # the policy's differences are 3 and -6, the reference's 0 and -4, of which 0 and 0 stay; times 0.5
    gradient = [0.5 * sigmoid(-1.5), 0.5 * sigmoid(3)]
    gives(HyPO(beta=0.5), [-log_sigmoid(1.5), -log_sigmoid(-3)], [-one for one in gradient], gradient)
    expected = [-0.9 * log_sigmoid(1.5) - 0.1 * log_sigmoid(-1.5), -0.5 * log_sigmoid(-3) - 0.5 * log_sigmoid(3)]
    gives(HyPO(beta=0.5), expected, confidence=[0.9, 0.5])
    assert HyPO(beta=0.5).rewards(CHOSEN).tolist() == [1, -0.5]


def test_it_is_the_formula_of_the_paper():
    chosen, rejected = drawn()
    references = chosen.reference - rejected.reference
    assert (references > 0).any()
    assert (references < 0).any()
    expected = -F.logsigmoid(0.1 * (chosen.policy - rejected.policy - references.clamp(min=0)))
    torch.testing.assert_close(HyPO(beta=0.1)(chosen, rejected), expected, rtol=1e-5, atol=1e-5)


def test_it_is_dpo_where_the_reference_does_not_prefer_the_rejected_response():
    chosen, rejected = drawn()
    low, high = (pick(chosen.reference, rejected.reference) for pick in (torch.minimum, torch.maximum))
    equal(HyPO(), DPO(), replace(chosen, reference=high), replace(rejected, reference=low))
    equal(HyPO(), DPO(), replace(chosen, reference=high), replace(rejected, reference=high))  # neutral


def test_it_is_dpo_with_a_neutral_reference_where_it_does():
    chosen, rejected = drawn()
    low, high = (pick(chosen.reference, rejected.reference) for pick in (torch.minimum, torch.maximum))
    values = HyPO()(replace(chosen, reference=low), replace(rejected, reference=high))
    torch.testing.assert_close(values, DPO()(replace(chosen, reference=low), replace(rejected, reference=low)))
