"""`lit-tr judge` as a user runs it, against a real server where a language model judges."""

import json

import pytest

from lit_tr.commands import main
from lit_tr.evaluation.alpaca_eval import read_annotations
from lit_tr.evaluation.responses import Response, append
from lit_tr.evaluation.win_rates import win_rates
from tests.evaluation.judges.server import KEY, PROMPT_TOKENS, Server, always_a


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    prompts = [f"Describe a {word} river." for word in ("cold", "hot", "quiet", "old", "new", "big")]
    append(
        "a.jsonl", [Response(str(i), one, f"The river is {one.split()[2]}. It flows.") for i, one in enumerate(prompts)]
    )
    append("b.jsonl", [Response(str(i), one, "No.") for i, one in enumerate(prompts[:-1])])


def judge(*options):
    main(["judge", *options])


def figures(folder):
    return json.loads((folder / "win_rates.json").read_text())


def test_a_function_judges(tmp_path, capsys):
    judge("a.jsonl", "b.jsonl", "--judge", "lit_tr.embedded.task.GoldReward")
    told = figures(tmp_path / "a-vs-b")
    found = told["criteria"]["overall"]
    assert (told["a"], told["judge"]) == ({"name": "a", "file": "a.jsonl"}, "GoldReward")
    assert (told["only_a"], told["only_b"], found["pairs"], found["win_rate"]) == (1, 0, 5, 1.0)
    assert found["position_bias"] is None
    shown = capsys.readouterr().out
    assert "Win rate of a against b" in shown
    assert "1 responses are in a.jsonl alone and are not judged" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_several_functions_are_an_ensemble(tmp_path):
    names = ["lit_tr.embedded.task.GoldReward", "tests.commands.test_judge.shortness"]
    judge("a.jsonl", "b.jsonl", "--judge", *names, "--ensemble", "worst")
    assert figures(tmp_path / "a-vs-b")["judge"] == "worst of GoldReward, shortness"


def shortness(prompt, response):
    return -len(response)


def test_a_language_model_judges_by_criteria_in_both_orders(tmp_path, capsys):
    with Server() as server:
        options = ["a.jsonl", "b.jsonl", "--url", server.url, "--model", "judge-1", "--criteria", "overall", "detail"]
        judge(*options, "--repeat", "2", "--prices", "1", "2", "--output", "out")
        assert len(server.requests) == 2 * (5 + 2) * 2
        told = figures(tmp_path / "out")
        assert [*told["criteria"]] == ["overall", "detail"]
        for one in told["criteria"].values():
            assert one["win_rate"] == pytest.approx(0.9)
            assert (one["agreement"], one["repeatability"], one["unparsable"]) == (1.0, 1.0, [0, 0])
            assert one["position_bias"] == pytest.approx(0.0)
        asked = told["asked"]["judge-1"]
        assert (asked["asked"], asked["cached"], asked["prompt_tokens"]) == (28, 0, 28 * PROMPT_TOKENS)
        assert asked["cost"] == pytest.approx((28 * PROMPT_TOKENS + 2 * 28) / 1e6)
        judge(*options, "--output", "out", "--repeat", "2")
        assert len(server.requests) == 28
    shown = capsys.readouterr().out
    assert "28 questions were asked and 0 were in the cache" in shown
    assert "0 questions were asked and 28 were in the cache" in shown
    lines = [json.loads(line) for line in (tmp_path / "out" / "judgements.jsonl").read_text().splitlines()]
    assert len(lines) == 10
    assert lines[0]["orders"] == pytest.approx([0.9, 0.1])
    assert [path for path in tmp_path.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()] == []
    assert KEY not in shown


def test_a_judge_that_always_says_a_is_reported_as_biased(tmp_path, capsys):
    with Server(rule=always_a) as server:
        judge("a.jsonl", "b.jsonl", "--url", server.url, "--model", "judge-1")
    found = figures(tmp_path / "a-vs-b")["criteria"]["overall"]
    assert found["win_rate"] == pytest.approx(0.5)
    assert found["position_bias"] == pytest.approx(0.98)
    assert found["agreement"] == 0.0
    assert "overall: the judge is biased: it prefers what is shown first" in capsys.readouterr().out


def test_a_limit_ends_with_what_to_do(capsys):
    with Server() as server:
        options = ["a.jsonl", "b.jsonl", "--url", server.url, "--model", "judge-1"]
        with pytest.raises(SystemExit) as caught:
            judge(*options, "--limit-tokens", "500")
        assert caught.value.code == 2
        assert "All answers are kept: run the same command again" in capsys.readouterr().err
        judge(*options)
        assert set(server.asked.values()) == {1}


FILES = ["a.jsonl", "b.jsonl"]
GOLD = [*FILES, "--judge", "lit_tr.embedded.task.GoldReward"]
MODEL = [*FILES, "--model", "x", "--url", "http://127.0.0.1:1/v1"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ([], "give two files of responses"),
        (["a.jsonl"], "give two files of responses"),
        (["a.jsonl", "b.jsonl"], "give one judge"),
        (["a.jsonl", "b.jsonl", "--model", "x", "--local", "y"], "give one judge"),
        (["a.jsonl", "b.jsonl", "--judge", "no.such"], "--judge no.such: there is no such function"),
        (["a.jsonl", "none.jsonl", "--judge", "lit_tr.embedded.task.GoldReward"], "none.jsonl"),
        (
            [*GOLD, "--criteria", "detail"],
            "has no criteria",
        ),
        (
            [*MODEL, "--criteria", "wit"],
            "no criterion 'wit'",
        ),
        (
            [*MODEL, "--limit-cost", "1"],
            "needs the prices",
        ),
        (["--alpaca-eval", "--judgements", "x"], "needs --annotations"),
        (["--judgements", "none"], "no file of judgements"),
    ],
)
def test_mistakes_are_one_message(options, says, capsys):
    with pytest.raises(SystemExit) as caught:
        judge(*options)
    assert caught.value.code == 2
    assert says in capsys.readouterr().err


def annotations(path, model, preferences):
    rows = [
        {"instruction": f"Do {i}.", "output_1": "base", "output_2": model * (i + 1), "generator_1": "base"}
        | {"generator_2": model, "preference": preference}
        for i, preference in enumerate(preferences)
    ]
    path.write_text(json.dumps(rows))


def test_annotations_and_their_difference(tmp_path, capsys):
    annotations(tmp_path / "x.json", "x", [1.2, 1.9, 1.5, 1.0, 2.0])
    annotations(tmp_path / "y.json", "y", [1.1, 1.8, 1.4, 1.0, 1.8])
    judge("--annotations", "x.json", "--minus", "y.json", "--output", "out", "--alpaca-eval")
    shown = capsys.readouterr().out
    rates = win_rates(read_annotations("x.json").judgements)
    assert f"win rate 52.000000, standard error {100 * rates.standard_error:.6f}" in shown
    assert "Win rate of x less that of y" in shown
    assert "df_gamed.csv" in shown
    told = figures(tmp_path / "out")
    assert told["criteria"]["overall"]["win_rate"] == pytest.approx(0.52)
    assert told["minus"]["criteria"]["overall"]["win_rate"] == pytest.approx(0.1)


def test_what_was_written_is_read_again(tmp_path, capsys):
    judge("a.jsonl", "b.jsonl", "--judge", "lit_tr.embedded.task.GoldReward")
    first = figures(tmp_path / "a-vs-b")
    judge("--judgements", "a-vs-b", "--minus", "a-vs-b", "--output", "again")
    again = figures(tmp_path / "again")
    assert again["criteria"] == first["criteria"]
    assert again["a"]["name"] == "a"
    assert again["minus"]["criteria"]["overall"]["win_rate"] == 0.0


def test_prompts_are_copied(tmp_path, capsys):
    judge("--copy-prompts", "prompts")
    assert (tmp_path / "prompts" / "criteria" / "coherence.txt").exists()
    answers = "".join(
        f"<answer {name}>\n{{{slot}}}\n</answer {name}>\n" for name, slot in (("A", "first"), ("B", "second"))
    )
    (tmp_path / "prompts" / "pairwise.txt").write_text(f"### user\n{{prompt}}\n{answers}")
    with Server() as server:
        options = ["--url", server.url, "--model", "judge-1", "--prompt", "prompts/pairwise.txt"]
        judge("a.jsonl", "b.jsonl", *options)
        assert all("<request>" not in prompt for prompt in server.asked)
