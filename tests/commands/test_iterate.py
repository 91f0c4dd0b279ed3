"""`lit-tr iterate` as a user runs it."""

import fcntl
import json
import os
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml

from lit_tr.commands import iterate, main
from lit_tr.commands.configs import shipped
from lit_tr.commands.fit import configured
from lit_tr.embedded import TINY
from lit_tr.evaluation.responses import read
from tests.commands import rounds
from tests.evaluation.judges.server import Server
from tests.processes import FORKED
from tests.runs import fails

ROOT = Path(__file__).parents[2]
PATIENCE = 600


@pytest.fixture(autouse=True)
def _place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def write(tmp_path, llama_dir):
    def written(policy=None, **more):
        return rounds.write(tmp_path / "rounds.yaml", policy or llama_dir, output="out", **more)

    return written


def started(*args):
    """Run `lit-tr` in a process group of its own."""
    os.setsid()
    main([*args])


@pytest.fixture
def start():
    """Start processes with all imports done, each in a group of its own; they end with the test."""
    groups = []

    def run(config):
        process = FORKED.Process(target=started, args=("iterate", "--config", config))
        process.start()
        groups.append(process.pid)
        return process

    yield run
    for group in groups:
        end(group)


def end(group):
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def is_gone(group):
    """Whether no process of a group is left."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


def wait_for(pattern, process, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not list(Path("out").glob(pattern)):
        assert process.is_alive(), f"it ended before {pattern} came"
        assert time.monotonic() < deadline, f"no {pattern} came"
        time.sleep(0.002)


def figures(folder="out"):
    return {path.parent.name: json.loads(path.read_text()) for path in sorted(Path(folder).glob("round_*/round.json"))}


def files(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_round_from_end_to_end_with_one_more_and_a_start_that_does_nothing(write, capfd):
    config = write()
    main(["iterate", "--config", config])
    out = capfd.readouterr().out
    said = [line for line in out.splitlines() if line.startswith("round 1: ") and "pairs of" in line]
    assert len(said) == 1
    assert out.index(said[0]) < out.index("finished ") < out.index("round 1: held-out responses")  # in this order
    table = out[out.index(" round  pairs") :].splitlines()
    assert max(map(len, table[:5])) <= 80
    assert [line.split()[0] for line in table[2:4]] == ["0", "1"]
    assert (
        out.splitlines()[-1] == "- policies, candidates, pairs and figures are in out; `lit-tr report out` draws them"
    )
    first = figures()
    assert first["round_1"]["kl"] > 0
    before = files("out")
    main(["iterate", "--config", config])
    assert files("out") == before
    assert "candidates" not in capfd.readouterr().out.partition("round  pairs")[0]
    main(["report", "out"])
    assert Path("out/report.html").exists()


@pytest.mark.slow
def test_two_processes_make_the_rounds_that_one_makes(write):
    options = {"prompts_per_round": 24}  # 72 candidates: they are scored in these processes
    main(["iterate", "--config", write(**options)])
    main(["iterate", "--config", write(**options), "--processes", "2", "--output", "two"])
    one, two = ({row.key: row for row in read(Path(folder, "round_1/scores.jsonl"))} for folder in ("out", "two"))
    assert len(one) == 72
    assert one == two
    assert figures() == figures("two")


def rated(prompt):
    """Rate by what is shown; one judgement in five cannot be read."""
    number = sum(map(ord, prompt))
    return f"It has {number % 6} points.\n\n[[{number % 6}]]" if number % 5 else "It is good."


@pytest.mark.slow
def test_new_prompts_and_a_judge_that_fails_the_same_command_goes_on(write, capsys, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    options = yaml.safe_load(Path(write()).read_text())
    options["instruct"] = {"policy": "embedded:tiny", "shots": 2, "max_new_tokens": 48, "temperature": 1.0}

    def config(server, output):
        how = {"model": "m", "url": server.url, "concurrency": 1, "judgements": 1, "cache": "{output}/answers.sqlite3"}
        judge = {"class_path": "lit_tr.evaluation.judges.JudgeReward", "init_args": how}
        Path(f"{output}.yaml").write_text(yaml.safe_dump(options | {"output": output, "reward": judge}))
        return f"{output}.yaml"

    with Server(rated) as server:
        main(["iterate", "--config", config(server, "whole")])
        asked = len(server.requests)
        server.failures = [None] * (asked // 2) + [b"<html>"] * 3
        said = fails(capsys, "iterate", "--config", config(server, "out"))
        assert "1 of " in said
        assert "the same command asks the rest again and goes on" in said
        main(["iterate", "--config", "out.yaml"])
        assert len(server.requests) == 2 * asked + 3
    assert figures("out") == figures("whole")
    [counts] = [json.loads(path.read_text()) for path in Path("out").glob("round_1/pairs.json")]
    assert counts["unscored"] > 0
    prompts = [json.loads(line)["prompt"] for line in Path("out/round_1/prompts.jsonl").read_text().splitlines()]
    assert len({*prompts}) == 6


MISTAKES = [
    (["--fit", "{model: {policy: {path: P}, los: 1}}"], "fit: model.los: PreferenceModule has no argument"),
    (
        ["--fit", "{trainer: {max_step: 4}, model: {policy: {path: P}}}"],
        "fit: there is no option --trainer.max_step",
    ),
    (["--fit", "{data: {batch_size: 4}}"], "fit: it has no model.policy"),
    (["--fit", "nothing"], "nothing"),
    (["--fit", "rounds.yaml"], "fit: "),
    (["--fit", "[3]"], "fit 3: a file or a mapping of options of `lit-tr fit` is expected"),
    (["--fit", "words.yaml"], "fit words.yaml: "),
    (["--reward", "tests.commands.rounds.nothing"], "--reward"),
    (["--rounds", "0"], "--rounds"),
    (["--sampling.samples", "0"], "samples must be at least 1"),
    (["--sampling.temperature", "0"], "greedy responses to a prompt are all the same"),
    (["--stop.kl", "0"], "stop.kl must be above 0"),
    (["--pairing", "MaxMax"], "--pairing: there is no MaxMax"),
    (["--confidence", "{class_path: lit_tr.iteration.Votes, init_args: {judges: []}}"], "give two judges"),
    (["--prompts", "empty.txt"], "prompts"),
    (["--prompts", "none.txt"], "none.txt: the prompts cannot be read"),
    (["--held_out", "empty.txt"], "held_out"),
    (["--temprature", "1"], "there is no option --temprature"),
]


@pytest.mark.parametrize(("options", "said"), MISTAKES)
def test_mistakes_are_one_message_before_anything_is_begun(write, capsys, options, said):
    config = write()
    Path("empty.txt").write_text("\n")
    Path("words.yaml").write_text("only words")
    text = fails(capsys, "iterate", "--config", config, *options)
    assert said in text
    assert "Traceback" not in text
    assert not list(Path("out").glob("round_*"))
    assert not Path("out/iterate.json").exists()  # so that the mended options can begin there


def test_a_policy_that_is_not_there_is_named_and_the_folder_stays_free(write, capsys, llama_dir):
    assert "no/policy" in fails(capsys, "iterate", "--config", write(policy="no/policy"))
    write()
    settings = iterate.parser()
    assert not Path("out/iterate.json").exists()
    assert settings.prog == "lit-tr iterate"


def stops(*args):
    raise KeyboardInterrupt


def test_other_options_and_a_second_process_are_refused(write, capsys, monkeypatch):
    Path("out").mkdir()
    plain = yaml.safe_load(Path(write()).read_text())
    with Path("out/.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        said = fails(capsys, "iterate", "--config", write())
        assert "output out: another process makes rounds there, or its training still runs" in said
    monkeypatch.setattr(iterate.Rounds, "run", stops)
    with pytest.raises(KeyboardInterrupt):
        iterate.run(["--config", write()])
    plain["fit"]["model"]["loss"]["init_args"]["beta"] = 0.5
    Path("other.yaml").write_text(yaml.safe_dump(plain | {"held_out_prompts": 4}))
    said = fails(capsys, "iterate", "--config", "other.yaml")
    assert "its rounds have other options; give another folder, or these:" in said
    assert "held_out_prompts: 5, now 4" in said
    assert "fit.model.loss.init_args.beta: 0.1, now 0.5" in said


def test_configurations_of_the_training_go_over_each_other(tmp_path):
    Path("a.yaml").write_text("model: {policy: {path: a}, loss: x}\n")
    found = iterate.merged("fit", ["a.yaml", {"model": {"policy": {"dtype": "bfloat16"}}}])
    assert found == {"model": {"policy": {"path": "a", "dtype": "bfloat16"}, "loss": "x"}}
    assert iterate.merged("fit", "quickstart") == yaml.safe_load(shipped("quickstart").read_text())


CHECKPOINT = "training/*/checkpoints/last.ckpt"
PHASES = [
    *("round_0/held_out.jsonl", "round_0/held_out.reward.jsonl"),
    *(
        f"round_{number}/{file}"
        for number in (1, 2)
        for file in (
            *("prompts.jsonl", "candidates/0.jsonl", "scores.jsonl", "fit.yaml", "training", CHECKPOINT),
            *("policy", "held_out.jsonl", "held_out.reward.jsonl"),
        )
    ),
]
"""What each phase begins with; a kill comes at a random instant behind each."""


def done(folder):
    """What is done in a folder: whole rows of files, and policies."""
    rows = {path: path.read_bytes().rpartition(b"\n")[0] for path in Path(folder).glob("round_*/**/*.jsonl")}
    return rows | {path: path.read_bytes() for path in Path(folder).glob("round_*/policy/*.safetensors")}


def same(ours, theirs):
    """Whether figures are equal, but for rounding."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(same(value, theirs[name]) for name, value in ours.items())
    return ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)


@pytest.mark.slow
def test_killed_in_each_phase_the_figures_are_those_of_an_uninterrupted_run(write, start):
    draw, config = random.Random(7), write(reward="slow", rounds=2)
    for phase in PHASES:
        before, process = done("out"), start(config)
        wait_for(phase, process)
        time.sleep(draw.uniform(0, 0.4))
        end(process.pid)
        process.join()
        now = done("out")
        assert all(now[path].startswith(rows) for path, rows in before.items()), f"{phase}: what was done has changed"
    process = start(config)
    process.join()
    assert process.exitcode == 0
    killed = figures()
    Path("out").rename("killed")
    process = start(config)
    process.join()
    assert process.exitcode == 0
    whole = figures()
    assert [*killed] == [*whole] == ["round_0", "round_1", "round_2"]
    assert all(same(killed[name], whole[name]) for name in whole), (killed, whole)
    assert len(PHASES) == 20


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_training_too_and_the_rounds_go_on(write, start, number, code):
    def set_steps(steps, *paths):
        for path in paths:
            plain = yaml.safe_load(Path(path).read_text())
            plain["fit"]["trainer"]["max_steps"] = steps
            Path(path).write_text(json.dumps(plain))

    def steps():
        last = max(Path("out").rglob("last.ckpt"), key=lambda path: path.stat().st_mtime)
        return torch.load(last, weights_only=True)["global_step"]

    config = write()
    set_steps(100_000, config)
    process = start(config)
    wait_for(f"round_1/{CHECKPOINT}", process)
    os.kill(process.pid, number)  # the first process alone
    process.join(PATIENCE)
    assert process.exitcode == code
    assert is_gone(process.pid)
    made = steps()
    set_steps(made + 1, config, "out/iterate.json")
    process = start(config)
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert steps() == made + 1
    assert figures()["round_1"]["kl"] > 0


def test_a_reward_that_is_silent_or_dies_is_one_message_and_loses_nothing(write, capsys):
    said = fails(capsys, "iterate", "--config", write(reward="silent"))
    assert "reward silent: it gives no score to any of 5 responses. Fix it" in said
    before = files("out/round_0")
    Path("out/iterate.json").unlink()
    said = fails(capsys, "iterate", "--config", write(reward="dies"))
    assert "reward dies: it failed (OSError: no route to the judge)" in said
    assert "Traceback" not in said
    assert files("out/round_0") == before


@pytest.mark.slow
def test_a_training_that_fails_is_told_and_gone_on_with(write, capfd, start):
    config = write()
    plain = yaml.safe_load(Path(config).read_text())
    plain["fit"]["data"]["max_length"] = 3  # no row fits
    Path(config).write_text(yaml.safe_dump(plain))
    said = fails(capfd, "iterate", "--config", config)
    assert "rows are bad" in said
    assert said.splitlines()[-1] == (
        "lit-tr: the training in out/round_1 failed (exit code 2, see above); fix it, and the same command goes on"
    )
    before = done("out")
    plain["fit"]["data"]["max_length"] = 128
    Path(config).write_text(yaml.safe_dump(plain))
    said = fails(capfd, "iterate", "--config", config)
    assert "fit.data.max_length: 3, now 128" in said
    assert "rounds to come may have others if you change them in out/iterate.json, too" in said
    options = json.loads(Path("out/iterate.json").read_text())
    options["fit"]["data"]["max_length"] = 128
    Path("out/iterate.json").write_text(json.dumps(options))
    process = start(config)
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert {path: rows for path, rows in done("out").items() if path in before} == before


VARIANTS = sorted(path.stem for path in (ROOT / "configs" / "iterate").glob("*.yaml") if path.stem != "training")


@pytest.mark.parametrize("variant", [None, *VARIANTS])
def test_what_ships_is_read_and_trains_by_options_of_fit(variant, tmp_path):
    made = iterate.parser()
    over = [] if variant is None else ["--config", str(shipped(f"iterate/{variant}"))]
    options = made.instantiate(made.parse_args(["--config", str(shipped("iterate_embedded")), *over]))
    for name in ("fit", "warm_up"):
        if given := getattr(options, name):
            listed = given if isinstance(given, list) else [given]
            own = {"data": {"train": {"class_path": "lit_tr.embedded.SyntheticPairs", "init_args": {"size": 4}}}}
            (tmp_path / "fit.yaml").write_text(yaml.safe_dump(iterate.merged(name, [*listed, own])))
            assert configured(["--config", str(tmp_path / "fit.yaml")]).model.source.path == TINY
