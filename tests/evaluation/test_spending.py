import pytest

from lit_tr.errors import UserError
from lit_tr.evaluation.answers import Answer, Question
from lit_tr.evaluation.spending import Limits, Spending


def question(text, most=10):
    return Question((("user", text),), max_tokens=most)


def test_cost_is_by_a_million_tokens():
    assert Limits(prompt_price=2.0, price=8.0).cost_of(1_000_000, 500_000) == 6.0


@pytest.mark.parametrize("given", [{"tokens": -1}, {"cost": -0.1, "price": 1.0}, {"price": -1.0}, {"cost": 1.0}])
def test_limits_are_checked(given):
    with pytest.raises(UserError, match="limit"):
        Limits(**given)


def test_what_is_in_the_air_counts_as_its_most():
    spending = Spending(Limits(tokens=60))
    assert spending.reserve(question("a" * 30))  # 10 tokens, and 10 of its answer
    assert spending.reserve(question("b" * 30))
    assert spending.reserve(question("c" * 30))
    assert not spending.reserve(question("d" * 30))
    spending.settle(question("a" * 30), Answer("", None, 10, 1))
    assert not spending.reserve(question("d" * 30))  # 11 + 2 * 20 + 20
    spending.settle(question("b" * 30), None)
    assert spending.reserve(question("d" * 30))  # 11 + 20 + 20
    assert (spending.prompt_tokens, spending.tokens) == (10, 1)


def test_the_densest_prompt_so_far_is_the_measure():
    spending = Spending(Limits(tokens=100))
    spending.reserve(question("a" * 30, 0))
    spending.settle(question("a" * 30, 0), Answer("", None, 30, 0))
    assert not spending.reserve(question("b" * 71, 0))
    assert spending.reserve(question("b" * 70, 0))


def test_cost_is_limited_too():
    spending = Spending(Limits(cost=1.0, prompt_price=0.0, price=1e6))
    assert spending.reserve(question("a", 1))
    assert not spending.reserve(question("b", 1))
