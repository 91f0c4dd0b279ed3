import json

import pytest

from lit_tr.errors import UserError
from lit_tr.evaluation.page import find
from lit_tr.evaluation.page.found import json_lines
from tests.evaluation.page.folders import config, evaluated, judged, judgement, lines, response, run, scored


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


def test_rounds_are_one_run_whose_curves_follow_each_other(tmp_path):
    out = tmp_path / "out"
    lines(out / "evaluation.jsonl", [evaluated(step, step, 1.0) for step in range(3)])
    options = {"sampling": {"seed": 1}, "rounds_of": "x", "fit": config()}
    (out / "iterate.json").write_text(json.dumps(options))
    for number, started in ((1, "1"), (1, "2 gone on with"), (2, "3")):
        run(out / f"round_{number}/training/{started}")
    for number in range(3):
        scored = {"policy": f"round_{number}", "id": "0", "prompt": "P", "response": "R"}
        for name, score in (("", None), (".reward", 1.0), (".truth", 2.0), (".pairs", 3.0)):
            lines(out / f"round_{number}/held_out{name}.jsonl", [scored | ({} if score is None else {"score": score})])
        lines(out / f"round_{number}/candidates/0.jsonl", [scored | {"prompt": "another"}])
    found = find([tmp_path])
    [one] = found.runs
    assert (one.folder, [row["step"] for row in one.evaluations]) == (out, [0, 1, 2])
    assert [int(row["step"]) for row in one.metrics] == [*range(16)]
    assert one.config == {"sampling": {"seed": 1}, "rounds_of": "x", **config()}
    assert [*found.responses] == ["round_0", "round_1", "round_2"]
    assert [row.get("score") for row in found.responses["round_2"]] == [None, 1.0, 2.0]


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
