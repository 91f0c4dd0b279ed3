import json
import math
import re
from pathlib import Path

import pytest
import yaml

from lit_tr.commands import iterate, main
from lit_tr.errors import UserError
from lit_tr.evaluation.answers import Answer, Answers, Asker
from lit_tr.evaluation.judges import LLMScorer, Principles
from lit_tr.evaluation.judges.principles import Principle, read_principles
from lit_tr.rewards import Candidate
from tests.evaluation.judges.server import KEY, Server

CANDIDATES = [Candidate("Hi", "Hello there."), Candidate("Hi", "No.")]


def rate(prompt, response, principle):
    """Long ones for a principle that says so, and exclamation for any other."""
    return float(len(response)) if "long" in principle else float(response.count("!"))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text("long: Be long.\nloud: {text: Be loud., weight: -3}\n")
    return str(path)


def test_a_function_rates_by_each_principle(file):
    reward = Principles(file, rate)
    assert reward.name == "rate by rules"
    assert reward.explain([Candidate("Hi", "Oh!!")]) == [{"score": (1 * 4 - 3 * 2) / 4, "long": 4.0, "loud": 2.0}]
    assert Principles(file, rate, {"loud": 0}).score([Candidate("Hi", "Oh!!")]) == [4.0]
    assert Principles(file, rate, {"loud": 1}).score([Candidate("Hi", "Oh!!")]) == [3.0]


class Model:
    """Rates 9 what the question's principle names, else 1, and counts questions; `Bad` cannot be read."""

    name = "model"

    def __init__(self):
        self.asked = []

    def answer(self, questions, keep):
        for question in questions:
            [(_, text)] = question.messages
            self.asked.append(text)
            principle = text.split("follows this principle: ")[1].split("\n")[0]
            digit = "x" if "<answer>\nBad" in text else "9" if principle == "Be long." else "1"
            keep(question, Answer(digit, {digit: 0.0}))


def test_a_language_model_is_asked_once_for_each_principle_and_not_again_for_other_weights(file, tmp_path):
    model, answers = Model(), Answers(tmp_path / "answers.sqlite3")
    asker = Asker(model, answers)
    assert Principles(file, LLMScorer(asker)).score(CANDIDATES) == [(9 - 3 * 1) / 4] * 2
    assert len(model.asked) == len({*model.asked}) == 4
    other = Principles(file, LLMScorer(Asker(model, Answers(tmp_path / "answers.sqlite3"))), {"loud": 1.0, "long": 3.0})
    assert other.score(CANDIDATES) == [(3 * 9 + 1) / 4] * 2
    assert other.name == "model by rules"
    assert len(model.asked) == 4


def test_what_cannot_be_read_is_no_score_unless_it_has_no_weight(file):
    scorer = LLMScorer(Asker(Model()))
    bad = [Candidate("Hi", "Bad")]
    [found] = Principles(file, scorer).explain(bad)
    assert math.isnan(found["score"])
    assert math.isnan(found["long"])


def test_a_rating_that_was_not_given_is_an_error_and_not_a_score_that_cannot_be_read(file):
    model = Model()
    model.answer = lambda questions, keep: None
    with pytest.raises(UserError, match="model: 2 of 2 questions have no answer"):
        Principles(file, LLMScorer(Asker(model))).score(CANDIDATES)


def test_lines_are_principles_and_their_names(tmp_path):
    path = tmp_path / "rules.txt"
    path.write_text("# how to answer\n\nBe brief.\n  Be kind: it helps.\nBe brief.\n")
    assert read_principles(path) == [Principle(one, one) for one in ("Be brief.", "Be kind: it helps.")]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "# nothing\n", "there are no principles in it"),
        ("a.yaml", "- Be brief.\n", "each principle needs a name"),
        ("a.yaml", "brief: 3\n", "brief: a principle is a text, or has"),
        ("a.yaml", "brief: {text: Be brief., wieght: 2}\n", "a principle is a text, or has"),
        ("a.yaml", "brief: {text: Be brief., weight: much}\n", "a principle is a text, or has"),
        ("a.yaml", "brief: {text: Be brief., weight: 0}\n", "all weights are 0"),
        ("a.yaml", "brief: [", "cannot be read"),
        ("none.txt", None, "cannot be read"),
    ],
)
def test_a_file_without_principles_is_said(tmp_path, name, text, said):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=said):
        Principles(str(tmp_path / name), rate)


def test_a_weight_of_another_name_is_said(file):
    with pytest.raises(UserError, match=r"weights: 'lound' is no principle of .*; they are long, loud"):
        Principles(file, rate, {"lound": 1.0})


def test_it_is_a_reward_of_the_command_line(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Hi {i}", "chosen": "Hello there!", "rejected": "No."} for i in range(3)]
    (tmp_path / "pairs.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    reward = {"principles": file, "judge": "tests.evaluation.judges.test_principles.rate"}
    reward = {"class_path": "lit_tr.evaluation.judges.Principles", "init_args": {**reward, "weights": {"loud": 1.0}}}
    main(["score", "pairs.jsonl", "--reward", json.dumps(reward), "--explain_labels"])
    found = json.loads((tmp_path / "scores/scores.json").read_text())
    assert found["reward"] == "rate by rules"
    assert found["policies"]["chosen"]["mean"] == (12 + 1) / 2
    assert [*found["labels"]["features"]] == ["long", "loud"]


def test_a_server_judges_by_a_file_of_options(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}))
    with Server(rule=lambda prompt: {"9" if "Be long." in prompt else "1": 0.0}) as server:
        endpoint = {"class_path": "lit_tr.evaluation.endpoint.Endpoint", "init_args": {"model": "m", "url": server.url}}
        answers = {"class_path": "lit_tr.evaluation.answers.Answers", "init_args": {"path": "answers.sqlite3"}}
        judge = {"asker": {"model": endpoint, "answers": answers}}
        judge = {"class_path": "lit_tr.evaluation.judges.LLMScorer", "init_args": judge}
        made = {"principles": file, "judge": judge, "weights": {"loud": 1.0}}
        reward = {"reward": {"class_path": "lit_tr.evaluation.judges.Principles", "init_args": made}}
        (tmp_path / "reward.yaml").write_text(yaml.dump(reward))
        main(["score", "pairs.jsonl", "--config", "reward.yaml"])
        assert server.asked.total() == 4
        main(["score", "pairs.jsonl", "--config", "reward.yaml", "--reward.weights", "{loud: 3.0}"])
        assert server.asked.total() == 4  # other weights ask nothing
    assert json.loads((tmp_path / "scores/scores.json").read_text())["policies"]["chosen"]["mean"] == (9 + 3 * 1) / 4


GUIDE = Path(__file__).parents[3] / "docs/guides/rewards.md"
CACHES = ["answers.sqlite3", "{output}/new/answers.sqlite3", None]


@pytest.mark.parametrize("cache", CACHES)
def test_rounds_read_what_the_guide_shows_write_it_down_and_read_it_again(tmp_path, monkeypatch, cache):
    monkeypatch.chdir(tmp_path)
    texts = re.findall(r"```text\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    Path("principles.yaml").write_text(next(text for text in texts if text.startswith("honest: ")))
    [reward] = (yaml.safe_load(text)["reward"] for text in texts if "judges.Principles" in text)
    asker = reward["init_args"]["judge"]["init_args"]["asker"]
    if cache:
        asker["answers"]["init_args"]["path"] = cache
    else:
        del asker["answers"]
    rows, made = {"class_path": "lit_tr.embedded.SyntheticPairs"}, iterate.parser()
    given = made.parse_object({"fit": "dpo", "prompts": rows, "held_out": rows, "reward": reward})
    plain = json.loads(made.dump(given, skip_none=False, format="json"))
    found = made.instantiate(made.parse_object(plain)).reward
    assert found.weights == {"brief": 0.5}
    assert (found.judge.asker.answers.path, found.judge.asker.model.path) == (cache, "FOLDER")
    assert [one.name for one in tmp_path.rglob("*")] == ["principles.yaml"]  # nothing is opened before it is used
