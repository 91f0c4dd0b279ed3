import pytest

from lit_tr.errors import UserError
from lit_tr.evaluation.page import find
from lit_tr.evaluation.page.found import json_lines
from tests.evaluation.page.folders import evaluated, judged, judgement, lines, response, run, scored


def test_runs_judgements_and_responses_are_found_below_a_folder_once(tmp_path):
    run(tmp_path / "grid/one", [evaluated(0, 0, 1.0)])
    run(tmp_path / "grid/two")
    judged(tmp_path / "grid/one/judged", [judgement(0, "yes", "no", 0.9)])
    lines(tmp_path / "grid/one/generations.jsonl", [{"prompt": "P", "response": "R"}, {"prompt": "P", "response": "S"}])
    lines(tmp_path / "grid/one/pairs.jsonl", [{"prompt": "P", "chosen": "R", "rejected": "S"}])
    found = find([tmp_path / "grid", tmp_path / "grid/one"])
    assert [one.folder.name for one in found.runs] == ["one", "two"]
    assert found.runs[0].evaluations == [evaluated(0, 0, 1.0)]
    assert found.runs[0].config["seed_everything"] == 1
    assert len(found.runs[1].metrics) == 8
    assert [one.names for one in found.comparisons] == [("policy", "initial")]
    assert [row["id"] for row in found.responses["generations"]] == ["0", "1"]


def test_scores_of_two_rewards_are_found(tmp_path):
    scored(tmp_path / "whole", [1.0, 2.0, 3.0], 0.5)
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone/scores.json").write_text('{"reward": "Gold", "policies": {}}')
    [found] = find([tmp_path]).scores
    assert (found.folder.name, found.scores["spearman"]["policies"]["rho"]) == ("whole", 0.5)


def test_a_name_of_a_policy_in_several_folders_gets_that_of_the_folder(tmp_path):
    for name in ("a", "b"):
        lines(
            tmp_path / name / "responses" / "r.jsonl", [response(0, name, "policy"), response(0, name, f"only {name}")]
        )
    found = find([tmp_path / "a", tmp_path / "b"])
    assert {*found.responses} == {
        f"policy ({tmp_path}/a/responses)",
        f"policy ({tmp_path}/b/responses)",
        "only a",
        "only b",
    }


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "neither a run nor judgements nor responses"),
        (lambda folder: lines(folder / "pairs.jsonl", [{"prompt": "P", "chosen": "C"}]), "neither a run"),
        (lambda folder: lines(folder / "evaluation.jsonl", [{"label": "policy"}]), r"line 1: there is no 'step'"),
        (lambda folder: (folder / "win_rates.json").write_text('{"a": {}}'), "not what `lit-tr judge` writes"),
        (lambda folder: (folder / "win_rates.json").write_text("{"), "not what `lit-tr judge` writes"),
        (lambda folder: (folder / "scores.json").write_text('{"a": {}}'), "not what `lit-tr score` writes"),
        (lambda folder: (folder / "scores.json").write_text("[1"), "not what `lit-tr score` writes"),
        (lambda folder: judged(folder, [{"id": "0"}]), "judgements.jsonl, line 1: there is no 'prompt'"),
        (lambda folder: (run(folder / "r") / "config.yaml").write_text("a: ["), "cannot be read as YAML"),
    ],
)
def test_mistakes_are_named(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(UserError, match=message):
        find([tmp_path])


def test_a_folder_that_is_not_there_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match="RUN .*none: there is no such folder"):
        find([tmp_path / "none"])


def test_only_a_last_line_may_be_torn(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2')
    assert list(json_lines(path)) == [{"a": 1}]
    path.write_text('{"a": 1\n{"a": 2}\n')
    with pytest.raises(UserError, match="line 1: not JSON"):
        list(json_lines(path))
    path.write_text("[1]\n")
    with pytest.raises(UserError, match="line 1: a JSON object is expected, not list"):
        list(json_lines(path))
