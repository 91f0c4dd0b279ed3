import json
import math

import pytest

from lit_tr.data import Objects
from lit_tr.errors import UserError
from lit_tr.evaluation.responses import Response, append
from lit_tr.evaluation.scored import Responses, open_responses, preferences, scored, scored_together
from lit_tr.rewards import Candidate, Ensemble, FunctionScorer, Gold

ASK = "Describe a cold river."
PAIR = {"prompt": ASK, "chosen": " It is icy.", "rejected": " It is hot."}


def responses(path, *policies):
    path.parent.mkdir(exist_ok=True)
    for name in policies:
        append(path, [Response(f"{name} {i}", ASK, f"It is {name}.", policy=name) for i in range(2)])
    return str(path)


def test_responses_are_of_their_policies(tmp_path):
    first = responses(tmp_path / "a" / "generations.jsonl", "policy")
    second = responses(tmp_path / "b" / "generations.jsonl", "policy", "initial")
    found = open_responses([first, second])
    assert {name: [one.response for one in those] for name, those in found.by_policy.items()} == {
        "a-policy": ["It is policy."] * 2,
        "b-policy": ["It is policy."] * 2,
        "initial": ["It is initial."] * 2,
    }
    nameless = tmp_path / "mine.jsonl"
    nameless.write_text(json.dumps({"id": 1, "prompt": ASK, "response": "Icy."}))
    assert [*open_responses([nameless]).by_policy] == ["mine"]


def test_pairs_are_responses_of_two_policies():
    rows = [
        {**PAIR, "reference_answer": "Icy.", "qtype": "CONSTRAINED"},
        {**PAIR, "system": "Be short."},
        {"chosen": [*chat("Hi"), *chat("Icy.", "assistant")], "rejected": [*chat("Hi"), *chat("Hot.", "assistant")]},
    ]
    found = preferences(Objects(rows)).by_policy
    chosen, rejected = found["chosen"], found["rejected"]
    assert chosen[0].candidate == Candidate(ASK, " It is icy.", "Icy.", "CONSTRAINED")
    assert rejected[0].candidate == Candidate(ASK, " It is hot.", "Icy.", "CONSTRAINED")
    assert [one.id for one in chosen] == [one.id for one in rejected] == ["0", "1", "2"]
    assert chosen[1].prompt == f"Be short.\n\n{ASK}"
    assert (chosen[2].prompt, chosen[2].response, rejected[2].response) == (chat("Hi"), "Icy.", "Hot.")


def chat(text, role="user"):
    return [{"role": role, "content": text}]


def test_rows_that_are_no_pair_are_left_out(write_rows):
    rows = [PAIR, {**PAIR, "rejected": PAIR["chosen"]}, {"prompt": ASK, "completion": "Icy.", "label": True}]
    found = open_responses([write_rows([PAIR, rows[1]])], max_bad_rows=1)
    assert (len(found.all), found.bad.reasons) == (2, "1 x chosen and rejected are equal")
    assert preferences(Objects([PAIR, rows[2]]), 1).bad.reasons == "1 x the row is no pair"
    with pytest.raises(UserError, match="1 of 2 rows are bad"):
        preferences(Objects(rows[:2]))
    with pytest.raises(UserError, match="there are no pairs in it"):
        preferences(Objects(rows[1:]), 2)


def test_files_that_do_not_go_together_are_refused(tmp_path, write_rows):
    pairs = write_rows([PAIR])
    with pytest.raises(UserError, match=r"rows.jsonl: it is no file of responses, .* one source at a time"):
        open_responses([responses(tmp_path / "a" / "x.jsonl", "policy"), pairs])
    with pytest.raises(UserError, match="policies of one name"):
        open_responses([responses(tmp_path / "b" / f"{name}.jsonl", "policy") for name in "xy"])
    with pytest.raises(UserError, match="nothing.jsonl"):
        open_responses([str(tmp_path / "nothing.jsonl")])


def test_scores_and_features_are_kept_and_what_is_no_number_is_left_out():
    given = Responses({"a": [Response("1", ASK, "The river is icy."), Response("2", ASK, "?")]})
    [first, second] = scored(given, Gold()).by_policy["a"]
    assert (first.score, first.features["subject"]) == (Gold()(ASK, first.response), 1)
    gaps = FunctionScorer(lambda prompt, response: math.nan if response == "?" else 1.0, "gaps")
    [first, second] = scored(given, gaps).by_policy["a"]
    assert (first.score, first.features, second.score) == (1.0, None, None)
    assert "score" not in second.line()
    with pytest.raises(UserError, match="silent: it gives no score to any of the 2 responses"):
        scored(given, FunctionScorer(lambda prompt, response: math.nan, "silent"))


def test_several_are_scored_in_one_call_and_told_apart():
    members = [FunctionScorer(lambda prompt, response: float(response), str(i)) for i in range(2)]
    parts = [
        Responses({name: [Response(str(i), ASK, str(value)) for i, value in enumerate(those)] for name, those in of})
        for of in ([("chosen", (4, 2)), ("rejected", (0, 0))], [("chosen", (8,)), ("rejected", (-2,))])
    ]
    found = scored_together(parts, Ensemble(members))
    spread = math.sqrt((2**2 + 0 + 2**2 + 2**2 + 6**2 + 4**2) / 6)  # of 4, 2, 0, 0, 8, -2, whose mean is 2
    assert [[*one.by_policy] for one in found] == [["chosen", "rejected"]] * 2
    values = [[one.score * spread + 2 for one in part.all] for part in found]
    assert values == [pytest.approx([4, 2, 0, 0]), pytest.approx([8, -2])]
