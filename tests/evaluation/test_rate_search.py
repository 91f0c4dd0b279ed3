import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_tr.data import Objects
from lit_tr.embedded import TINY, SyntheticPairs, resolve
from lit_tr.errors import UserError
from lit_tr.evaluation import JudgedScore, RateSearch
from lit_tr.policy.averages import Averages, layer_groups


def tiny():
    return AutoModelForCausalLM.from_pretrained(resolve(TINY), dtype=torch.float32)


@pytest.fixture(scope="module")
def policy():
    """The embedded model with a step of 1 in all weights."""
    return {name: tensor + 1 for name, tensor in tiny().state_dict().items()}


@pytest.fixture
def averages(policy):
    return Averages(tiny(), policy)


class Nearest:
    """Minus the squared distances of the rates of groups from some goals, as the weights show them."""

    def __init__(self, *goals):
        self.goals, self.start, self.tried = goals, tiny().state_dict(), 0

    def __call__(self, model, tokenizer, rows):
        self.tried += 1
        state = model.state_dict()
        groups = layer_groups(model, (name for name, _ in model.named_parameters()), len(self.goals))
        rates = [0.0] * len(self.goals)
        for name, group in groups.items():
            rates[group] = (state[name] - self.start[name]).mean().item()
        return -sum((rate - goal) ** 2 for rate, goal in zip(rates, self.goals, strict=True))


def test_one_rate_is_the_best_of_the_grid(averages):
    metric, told = Nearest(0.42), []
    found = RateSearch(metric, steps=10)(averages, None, None, told.append)
    assert found.rates == (0.4,)
    assert found.metric == "Nearest"
    assert [one.rates for one in found.trials] == [(step / 10,) for step in range(11)]
    for one in found.trials:
        assert one.value == pytest.approx(-((one.rates[0] - 0.42) ** 2), abs=1e-5)
        assert one.standard_error is None
    assert metric.tried == 11  # the policy is tried once
    assert sorted(told, key=lambda one: one.rates) == list(found.trials)


def test_groups_find_rates_of_their_own(averages):
    """The metric is separable, so that coordinate search ends at its maximum on the grid."""
    metric = Nearest(0.0, 0.8, 0.3)
    found = RateSearch(metric, groups=3, steps=10)(averages, None, None)
    assert found.rates == (0.0, 0.8, 0.3)
    assert metric.tried == len(found.trials) == len({one.rates for one in found.trials})
    assert metric.tried <= 11 + 3 * 10 * 2
    assert {(0.0,) * 3, (1.0,) * 3} <= {one.rates for one in found.trials}


def test_of_equal_values_the_one_nearer_to_the_policy_is_taken(averages):
    assert RateSearch(lambda *given: 2.0, steps=4)(averages, None, None).rates == (1.0,)


def values(model, tokenizer, rows):
    """Of three rows, the second one without a value in all but the policy and the initial policy."""
    rate = (model.get_input_embeddings().weight - tiny().get_input_embeddings().weight).mean().round(decimals=3).item()
    return [rate, rate**2 if rate in (0, 1) else float("nan"), 3 * rate]


def test_means_errors_and_differences_are_those_of_the_rows(averages):
    """Of the rates 0 and 1/2 against (1, 1, 3), by hand."""
    start, half, end = RateSearch(values, steps=2)(averages, None, None).trials
    assert (start.value, start.standard_error) == (0, 0)
    assert start.difference == pytest.approx(-5 / 3)  # of -1, -1, -3
    assert start.difference_error == pytest.approx(2 / 3)
    assert half.value == pytest.approx(1.0)  # of 0.5 and 1.5
    assert half.standard_error == pytest.approx(0.5)
    assert half.difference == pytest.approx(-1.0)  # of -0.5 and -1.5
    assert (end.difference, end.difference_error) == (None, None)
    assert str(half) == "rate 0.5   1.000 ± 0.500   -1.000 ± 0.500 against the policy"
    assert str(end) == "rate 1     1.667 ± 0.667"


def test_what_was_found_is_a_table_and_plain_data(averages):
    found = RateSearch(values, steps=2)(averages, None, None)
    assert found.markdown().splitlines() == [
        "| rates | values | against the policy |",
        "| --- | --- | --- |",
        "| 0 | 0.000 ± 0.000 | -1.667 ± 0.667 |",
        "| 0.5 | 1.000 ± 0.500 | -1.000 ± 0.500 |",
        "| **1** | 1.667 ± 0.667 |  |",
    ]
    assert found.as_json()["rates"] == (1.0,)
    assert [one["rates"] for one in found.as_json()["trials"]] == [(0.0,), (0.5,), (1.0,)]
    assert str(found) == "rate 1, the best of 3 by values"


def test_each_average_sees_the_same_random_numbers_and_the_callers_go_on(averages):
    def noise(model, tokenizer, rows):
        return [random.random(), np.random.rand(), torch.rand(()).item()]

    torch.manual_seed(5)
    expected = torch.rand(2)[1]
    torch.manual_seed(5)
    torch.rand(1)
    trials = RateSearch(noise, steps=3, seed=1)(averages, None, None).trials
    assert torch.rand(()) == expected
    assert len({one.value for one in trials}) == 1
    assert RateSearch(noise, steps=1, seed=2)(averages, None, None).trials[0].value != trials[0].value


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (float("nan"), r"gave no number for the rates \(1.0,\), but nan"),
        ([float("nan")] * 2, "gave no number"),
        ("much", "must return numbers, not 'much'"),
        ([], "gave no number"),
        (None, "gave no number"),
    ],
)
def test_what_is_no_number_is_told(averages, returned, message):
    with pytest.raises(UserError, match=f"average.metric: <lambda> {message}"):
        RateSearch(lambda *given: returned)(averages, None, None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": 3}, "average.metric: 3 cannot be called"),
        ({"groups": 0}, "groups and steps must be at least 1"),
        ({"steps": 0}, "groups and steps must be at least 1"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        RateSearch(**{"metric": len, **options})


def test_rows_are_those_given_or_the_runs_own(tmp_path):
    """A metric that reads none needs none."""
    needs, given = JudgedScore(len), Objects([{"prompt": "a"}])
    own = {"data": {"val": {"class_path": "lit_tr.embedded.SyntheticPairs", "init_args": {"size": 3}}}}
    assert RateSearch(needs, data=given).rows(own, "some.ckpt") is given
    assert RateSearch(needs).rows(own, "some.ckpt") == SyntheticPairs(size=3)
    assert RateSearch(values).rows({}, "some.ckpt") is None
    with pytest.raises(UserError, match="JudgedScore needs held-out rows, and the run has no data.val: give average"):
        RateSearch(needs).rows({}, "some.ckpt")
    with pytest.raises(UserError, match=r"some.ckpt: data.val of its run cannot be read"):
        RateSearch(needs).rows({"data": {"val": {"class_path": "nowhere.Rows"}}}, "some.ckpt")
