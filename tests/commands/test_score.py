"""`lit-tr score` as a user runs it, on the embedded data."""

import json
import math
import sys
from pathlib import Path

import pytest
import yaml

from lit_tr.commands import main
from lit_tr.data.formats import Conversion, RewardGoals, UserWeights
from lit_tr.embedded import GoldReward
from lit_tr.evaluation.page import find
from lit_tr.evaluation.responses import Response, append, read
from lit_tr.rewards import Candidate, WhiteBox
from tests.evaluation.judges.server import KEY, Server
from tests.runs import fails

WHITE, GOLD = "lit_tr.rewards.WhiteBox", "lit_tr.embedded.GoldReward"
SYNTHETIC = ["--data", "lit_tr.embedded.SyntheticPairs", "--data.size", "40"]
ASK = "Describe a cold river."
TEXTS = {"a": "The river is icy. It looks cold and frozen.", "b": "The river is icy.", "c": "The castle is hot."}


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def score(*options):
    main(["score", *options])
    return json.loads(Path("scores/scores.json").read_text())


@pytest.fixture
def policies():
    for name, text in TEXTS.items():
        append(f"{name}.jsonl", [Response("0", ASK, text, policy=name, tokens=9)])
    return [f"{name}.jsonl" for name in TEXTS]


def test_preferences_beside_their_labels_and_another_reward(tmp_path, capsys):
    found = score(*SYNTHETIC, "--reward", WHITE, "--reward.copying", "1", "--against", GOLD)
    chosen, rejected = (read(tmp_path / "scores" / f"{name}.jsonl") for name in ("chosen", "rejected"))
    assert (len(chosen), {one.policy for one in chosen}) == (40, {"chosen"})
    by_hand = WhiteBox(copying=1.0).explain([one.candidate for one in (*chosen, *rejected)])
    assert [one.score for one in (*chosen, *rejected)] == pytest.approx([one["score"] for one in by_hand])
    assert chosen[0].features == pytest.approx({key: by_hand[0][key] for key in by_hand[0] if key != "score"})
    gold = [[GoldReward()(one.prompt, one.response) for one in those] for those in (chosen, rejected)]
    assert found["against"]["policies"]["chosen"]["mean"] == pytest.approx(sum(gold[0]) / 40)
    wins = [(a.score > b.score) + 0.5 * (a.score == b.score) for a, b in zip(chosen, rejected, strict=True)]
    assert found["agreement"]["agreement"] == sum(wins) / 40
    assert found["spearman"]["responses"]["count"] == 80
    shown = capsys.readouterr().out
    assert f"the reward prefers the chosen response in {100 * sum(wins) / 40:.1f} [" in shown
    assert "rank correlation of the two rewards over 80 responses" in shown
    assert "over 2 policies" not in shown
    files = [f"scores/{name}.jsonl" for name in ("chosen", "rejected")]
    assert score(*files, "--reward", GOLD)["agreement"]["pairs"] == 40
    assert "agreement" not in score(files[0], "--reward", GOLD)


def test_what_explains_the_labels_and_pairs_to_train_on(tmp_path, capsys):
    found = score(*SYNTHETIC, "--reward", WHITE, "--reward.copying", "1", "--explain_labels")["labels"]
    assert found["pairs"] == 40
    assert {*found["features"]} == {"length", "relevance", "repetition", "copying", "closed"}
    rows = [json.loads(line) for line in (tmp_path / "scores/pairs.jsonl").read_text().splitlines()]
    more = [row["length_chosen"] - row["length_rejected"] for row in rows]
    wins = sum((one > 0) + 0.5 * (one == 0) for one in more)
    assert found["features"]["length"]["agreement"] == wins / 40
    chosen = read(tmp_path / "scores/chosen.jsonl")
    assert [row["score_chosen"] for row in rows] == [one.score for one in chosen]
    shown = capsys.readouterr().out
    assert "labels explained by" in shown
    assert f"all features together prefer the chosen response in {100 * found['accuracy']:.1f} [" in shown
    [one, other] = Conversion(RewardGoals(decimals=2))(rows[0])
    assert (one.chosen, other.chosen) == (rows[0]["chosen"], rows[0]["rejected"])
    assert one.system == f"Write a response that is rated {round(rows[0]['score_chosen'], 2):g}."
    assert Conversion(UserWeights({"length": (1, 1), "score": (-1, 1)}))(rows[0])


def worth(prompt, response):
    """A number in the response."""
    return float(response)


def pairs_of(name, margins):
    rows = [{"prompt": f"{i}?", "chosen": f"{one}", "rejected": "0"} for i, one in enumerate(margins)]
    Path(name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def test_the_temperature_of_other_pairs_and_how_far_the_reward_agrees_with_both(capsys):
    pairs_of("in.jsonl", [2, 2, 2, -2])
    pairs_of("out.jsonl", [3, -3])
    found = score("out.jsonl", "--calibrate_on", "in.jsonl", "--reward", "tests.commands.test_score.worth")
    ours, other = found["agreement"], found["calibrated_on"]
    assert (ours["pairs"], ours["agreement"], other["pairs"], other["agreement"]) == (2, 0.5, 4, 0.75)
    assert other["source"] == "in.jsonl"
    assert ours["temperature"] == other["temperature"] == pytest.approx(2 / math.log(3), rel=1e-3)
    by_hand = 1 / (1 + math.exp(-3 * math.log(3) / 2)) - 0.5  # both as sure, and half of them right
    assert ours["calibration_error_at_temperature"] == pytest.approx(by_hand, abs=1e-3)
    shown = capsys.readouterr().out
    assert "prefers the chosen response in 50.0 [" in shown
    assert "- and in 75.0 [" in shown
    assert "of the 4 pairs of in.jsonl" in shown
    assert f"the temperature 1.82, fitted to those pairs, {by_hand:.3f}" in shown
    assert len(Path("scores/pairs.jsonl").read_text().splitlines()) == 2


def test_preferences_alone_are_calibrated_on_preferences_alone(policies, capsys):
    pairs_of("in.jsonl", [2, -2])
    asked = ["--reward", "tests.commands.test_score.length", "--calibrate_on"]
    for file, other in ((policies[0], "in.jsonl"), ("in.jsonl", policies[0])):
        said = fails(capsys, "score", file, *asked, other)
        assert f"--calibrate_on {other}: preferences are calibrated on preferences" in said


def test_policies_beside_each_other(policies, capsys):
    found = score(*policies, "--reward", GOLD, "--against", "tests.commands.test_score.length")
    assert {name: one["mean"] for name, one in found["policies"].items()} == {
        "a": 4.0,
        "b": 3.0 + 1 / 3,
        "c": pytest.approx(-4 - 2 / 3),
    }
    assert found["spearman"]["policies"] == {"count": 3, "rho": pytest.approx(0.5)}  # by length: a, c, b
    assert "agreement" not in found
    [line] = read("scores/b.jsonl")
    assert (line.score, line.tokens) == (3.0 + 1 / 3, 9)
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 120


def test_policies_of_one_name_are_told_apart_in_what_is_written_and_reported():
    for folder in "xy":
        append(f"{folder}/policy.jsonl", [Response("0", ASK, TEXTS["a"] + folder, policy="policy")])
    score("x/policy.jsonl", "y/policy.jsonl", "--reward", GOLD)
    assert [one.policy for one in read("scores/x-policy.jsonl")] == ["x-policy"]
    assert sorted(find(["scores"]).responses) == ["x-policy", "y-policy"]


def length(prompt, response):
    return len(response)


def test_an_ensemble_is_fitted_and_used_again(policies):
    members = [WHITE, {"class_path": "lit_tr.rewards.Relevance", "init_args": {"to": "prompt"}}]
    reward = {"class_path": "lit_tr.rewards.Ensemble", "init_args": {"members": members, "how": "worst"}}
    Path("reward.yaml").write_text(yaml.dump({"reward": reward}))
    first = score(*policies, "--config", "reward.yaml", "--fit", "fitted.json")
    again = score("b.jsonl", "--config", "reward.yaml", "--reward.fitted", "fitted.json")
    assert again["policies"]["b"]["mean"] == pytest.approx(first["policies"]["b"]["mean"])
    assert [*read("scores/b.jsonl")[0].features] == ["WhiteBox", "relevance to prompt"]


def test_a_language_model_scores(policies):
    def rule(prompt):
        return {"9": -0.1, "1": -2.4} if "castle" not in prompt else {"1": -0.1, "9": -2.4}

    with Server(rule=rule) as server:
        endpoint = {"class_path": "lit_tr.evaluation.endpoint.Endpoint", "init_args": {"model": "m", "url": server.url}}
        judge = {"class_path": "lit_tr.evaluation.judges.LLMScorer", "init_args": {"asker": {"model": endpoint}}}
        found = score(*policies, "--reward", json.dumps(judge))
    means = [one["mean"] for one in found["policies"].values()]
    assert means[0] == means[1] > 8 > 2 > means[2]


def test_responses_without_a_score_are_counted(policies, capsys):
    closed = Response("1", ASK, "Icy.", policy="a", kind="CONSTRAINED")
    append("a.jsonl", [closed])
    found = score(*policies, "--reward", WHITE)
    assert (found["policies"]["a"]["responses"], found["policies"]["a"]["unscored"]) == (2, 1)
    assert "1 responses have no score by WhiteBox; they are left out" in capsys.readouterr().out


def test_responses_of_policies_have_no_labels(policies, capsys):
    assert "--explain_labels: these are no preferences" in fails(
        capsys, "score", *policies, "--reward", WHITE, "--explain_labels"
    )


def nothing(prompt, response):
    return float("nan")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--reward", WHITE], "give files of responses, or of preferences"),
        (SYNTHETIC, "reward must be given"),
        (
            [*SYNTHETIC, "--reward", "lit_tr.rewards.WhitBox"],
            "--reward: there is no lit_tr.rewards.WhitBox among Scorer\n  did you mean WhiteBox",
        ),
        ([*SYNTHETIC, "--reward", WHITE, "--reward.lenth", "1"], "did you mean length"),
        ([*SYNTHETIC, "--reward", WHITE, "--reward.length", "-1"], "lit-tr: WhiteBox: length is an exponent"),
        ([*SYNTHETIC, "--reward", WHITE, "--reward.encoder", "none/here"], "none/here: no tokenizer can be loaded"),
        ([*SYNTHETIC, "--reward", "tests.commands.test_score.nothing"], "nothing: it gives no score to any of the 80"),
        ([*SYNTHETIC, "--reward", "lit_tr.rewards.Overlap"], "bleu: it compares with reference answers"),
        ([*SYNTHETIC, "--reward", GOLD, "--fit", "x.json"], "--fit x.json: GoldReward takes no statistics"),
        ([*SYNTHETIC, "--reward", GOLD, "--explain_labels"], "this one tells none of its scores"),
        (["no.jsonl", "--reward", GOLD], "no.jsonl"),
    ],
)
def test_mistakes_are_one_message(options, says, capsys):
    text = fails(capsys, "score", *options)
    assert says in text
    assert "Given value" not in text


def test_a_missing_package_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    assert "pip install 'lit-tr[evaluation]'" in fails(capsys, "score", *SYNTHETIC, "--reward", WHITE)


def test_what_is_scored_is_in_the_report(policies):
    score(*policies, "--reward", WHITE)
    main(["report", "scores"])
    page = Path("scores/report.html").read_text()
    [found] = WhiteBox(relevance=0).explain([Candidate(ASK, TEXTS["a"])])
    assert f'"length": {found["length"]}' in page
