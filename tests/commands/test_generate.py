import json
import random
import signal
import subprocess
import sys
import time
from statistics import fmean as mean

import pytest

from lit_tr.commands import main
from lit_tr.evaluation.responses import read
from lit_tr.policy import PretrainedPolicy
from tests.commands.test_export import train
from tests.evaluation.server import serving
from tests.runs import fails

TEXTS = ["Describe a cold river.", "Write about a quiet ship.", "What is a loud market like?"]
FAST = ["--max_new_tokens", "6"]


@pytest.fixture
def prompts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(TEXTS))
    return str(path)


def test_responses_of_a_model_with_a_second_start_that_does_nothing(prompts, tmp_path, capsys):
    args = ["generate", "embedded:tiny", "--data", prompts, "--samples", "2", *FAST]
    main(args)
    path = tmp_path / "responses" / "embedded--tiny.jsonl"
    found = read(path)
    assert {(one.prompt, one.sample) for one in found} == {(text, sample) for text in TEXTS for sample in (0, 1)}
    assert {one.policy for one in found} == {"embedded:tiny"}
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == (
        "embedded:tiny: 6 responses, 6 tokens on average, 6 cut at max_new_tokens, in responses/embedded--tiny.jsonl"
    )
    before = path.read_bytes()
    main(args)
    assert path.read_bytes() == before


def test_three_policies_of_a_run_on_its_validation_rows_and_other_formats(llama_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    checkpoint = train(tmp_path, llama_dir, val={"class_path": "lit_tr.embedded.SyntheticPairs"})
    run = checkpoint.parents[1]
    specs = [str(run), f"{run}:reference", f"{checkpoint}:initial"]
    main(["generate", *specs, "--prompts", "3", "--format", "[alpaca_eval, arena_hard]", "--name", "[a, b, c]", *FAST])
    for name in "abc":
        found = read(tmp_path / f"responses/{name}.jsonl")
        assert {one.id for one in found} == {"0", "1", "2"}  # in the order in which they came
        found = sorted(found, key=lambda one: one.id)
        assert all(one.chosen and one.rejected for one in found)
        rows = json.loads((tmp_path / f"responses/alpaca_eval/{name}.json").read_text())
        assert [row["output"] for row in rows] == [one.response for one in found]
        assert len((tmp_path / f"responses/arena_hard/{name}.jsonl").read_text().splitlines()) == 3
    texts = [[one.response for one in read(tmp_path / f"responses/{name}.jsonl")] for name in "abc"]
    assert texts[0] != texts[1] != texts[2] != texts[0]


def test_a_steered_run_beside_its_initial_policy_and_the_report_on_them(llama_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = str(train(tmp_path, llama_dir, val={"class_path": "lit_tr.embedded.SyntheticPairs"}).parents[1])
    common = ["--prompts", "3", "--output", "responses", *FAST]
    main(["generate", run, "--steer", "[0, 0.5, 2]", "--name", "run", *common])
    out = capsys.readouterr().out
    assert "run-steered-0: 3 responses, 6 tokens on average, 3 cut at max_new_tokens, KL 0.000 ± 0.000 nats" in out
    means = [mean(one.kl for one in read(f"responses/run-steered-{name}.jsonl")) for name in ("0", "0.5", "2")]
    assert 0 == means[0] < means[1] < means[2]
    assert f"KL {means[2]:.3f} ± " in out
    main(["generate", f"{run}:initial", "--samples", "4", "--name", "initial", *common])
    main(["report", "responses", "--judge", "lit_tr.embedded.task.GoldReward"])
    page = (tmp_path / "responses/report.html").read_text()
    assert "Numbers are strengths of steering" in page
    assert "the best of N samples" in page
    assert (tmp_path / "responses/report_frontier_score.png").exists()


def test_responses_of_a_server(prompts, tmp_path, tokenizer, capsys):
    with serving(PretrainedPolicy("embedded:tiny").load(), tokenizer) as server:
        main(["generate", "--server", server.address, "--data", prompts, "--output", "served.jsonl", *FAST])
        assert [one.policy for one in read(tmp_path / "served.jsonl")] == ["tiny"] * 3
        server.refuses = (TEXTS[1],)
        said = fails(
            capsys, "generate", "--server", server.address, "--data", prompts, "--output", "again.jsonl", *FAST
        )
        assert "1 requests were refused, and have no response; the first:" in said
        assert len(read(tmp_path / "again.jsonl")) == 2


def test_what_is_left_out_is_told(prompts, tmp_path, capsys, write_rows):
    rows = write_rows([{"prompt": "a"}, {"prompt": "a"}, {"nothing": 1}, {"prompt": "Describe. " * 400}])
    main(["generate", "embedded:tiny", "--data", rows, "--max_bad_rows", "1", *FAST])
    said = capsys.readouterr().err
    assert "left out 1 rows: 1 x no column holds a prompt" in said
    assert "1 rows have a prompt that was there already" in said
    assert "1 prompts are truncated for the policy" in said


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--data", "prompts.txt"], "give policies, `lit-tr generate POLICY ...`, or --server ADDRESS"),
        (["embedded:tiny", "--server", "http://x", "--data", "prompts.txt"], "and not both"),
        (["--server", "http://x", "--token_rewards", "--data", "prompts.txt"], "a server says nothing of the initial"),
        (["embedded:tiny", "--token_rewards", "--data", "prompts.txt"], "which only a checkpoint knows"),
        (["embedded:tiny", "--steer", "2", "--data", "prompts.txt"], "which only a checkpoint knows"),
        (
            ["embedded:tiny", "--steer", "1", "--token_rewards", "--data", "prompts.txt"],
            "--steer: it takes a checkpoint",
        ),
        (["--server", "http://x", "--steer", "1", "--data", "prompts.txt"], "--steer: it takes a checkpoint"),
        (["embedded:tiny"], "no prompts are given: --data FILE"),
        (["embedded:tiny", "--data", "none.txt"], "none.txt: the prompts cannot be read"),
        (["embedded:tiny", "--data", "prompts.txt", "--top_p", "2"], "top_p must be in"),
        (["embedded:tiny", "--data", "prompts.txt", "--format", "alpaca"], "alpaca"),
        (["embedded:tiny", "a/b", "--data", "prompts.txt", "--output", "o.jsonl"], "a/b"),
        (["embedded:tiny", "--data", "prompts.txt", "--temprature", "1"], "did you mean --temperature"),
    ],
)
def test_mistakes_are_one_message(prompts, capsys, args, said):
    text = fails(capsys, "generate", *args)
    assert said in text
    assert "Traceback" not in text


def test_the_help_names_what_there_is(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "--help"])
    assert stopped.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("POLICY is a checkpoint", "--temperature", "--samples", "--server", "--format", "'train[:50]'"):
        assert words in shown
    main(["--help"])
    assert "generate" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_is_killed_and_started_again(tmp_path):
    """`kill -9` of `lit-tr generate` itself, at random instants behind its start."""
    rows = "lit_tr.embedded.SyntheticPairs"
    args = [
        "generate",
        "embedded:tiny",
        "--data",
        rows,
        "--data.size",
        "300",
        "--samples",
        "4",
        "--batch_tokens",
        "900",
    ]
    command = [sys.executable, "-m", "lit_tr", *args, "--output", "a.jsonl"]
    path, draw = tmp_path / "a.jsonl", random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
        before = path.stat().st_size if path.exists() else 0
        while process.poll() is None and (path.stat().st_size if path.exists() else 0) <= before:
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, cwd=tmp_path).returncode == 0
    found = read(path)  # refuses an id and sample that are there twice
    ids = {one.id for one in found}
    assert {one.key for one in found} == {(name, sample) for name in ids for sample in range(4)}
    assert len(ids) == json.loads((tmp_path / "a.settings.json").read_text())["prompts"]["count"]
