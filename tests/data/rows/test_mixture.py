import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_tr.data import Mixture, Rows
from lit_tr.data.rows import Source
from lit_tr.errors import UserError
from tests.data.rows.stops import assert_goes_on


class Numbers(Source):
    """Rows that can only be read from the start."""

    def __init__(self, name, count):
        self.name, self.count = name, count

    def rows(self):
        for i in range(self.count):
            yield f"{self.name} {i}", {"n": i}


def locations(cursor):
    return [record.location for record in cursor]


def test_weights_say_how_often_a_source_is_drawn():
    drawn = Counter(
        place[0] for place in locations(Mixture([Numbers("a", 3000), Numbers("b", 3000)], [1, 3]).records())
    )
    assert 0.28 < drawn["a"] / drawn["b"] < 0.39
    assert drawn["b"] == 3000


def test_the_first_source_that_ends_ends_the_mixture_and_no_row_comes_twice():
    found = locations(Mixture([Numbers("a", 5), Numbers("b", 500)]).records())
    assert len(set(found)) == len(found)
    assert [location for location in found if location[0] == "a"] == [f"a {i}" for i in range(5)]
    assert len(found) < 100


def test_all_sources_end_and_the_short_ones_begin_anew():
    found = locations(Mixture([Numbers("a", 5), Numbers("b", 60)], until="all_exhausted").records())
    assert [location for location in found if location[0] == "b"] == [f"b {i}" for i in range(60)]
    ours = [int(location[2:]) for location in found if location[0] == "a"]
    assert ours == [i % 5 for i in range(len(ours))]
    assert len(ours) > 20


def test_orders_draw_anew():
    mixture = Mixture([Numbers("a", 50), Numbers("b", 50)], seed=2)
    assert locations(mixture.records(1)) == locations(mixture.records(1)) != locations(mixture.records(2))


@settings(deadline=None)
@given(
    until=st.sampled_from(["first_exhausted", "all_exhausted"]),
    stops=st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=5),
    order=st.none() | st.integers(0, 3),
)
def test_a_mixture_goes_on_from_any_state(tmp_path_factory, until, stops, order):
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_text("".join(json.dumps({"n": i}) + "\n" for i in range(20)))
    mixture = Mixture([Rows(str(path)), Numbers("b", 9)], [2.0, 1.0], until)
    assert_goes_on(mixture, stops, order, lambda record: record.location, goes_on_at_end=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Mixture([]), "at least one source"),
        (lambda: Mixture([Numbers("a", 1)], [1.0, 2.0]), "one for each source"),
        (lambda: Mixture([Numbers("a", 1)], [0.0]), "must be above 0"),
        (
            lambda: locations(Mixture([Numbers("a", 2), Numbers("b", 0)], until="all_exhausted").records()),
            "has no rows",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(UserError, match=message):
        make()
