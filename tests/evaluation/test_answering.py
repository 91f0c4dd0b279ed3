import fcntl
import json
import os
import random
import signal
import time
from dataclasses import replace

import pytest

from lit_tr.data import Objects
from lit_tr.errors import UserError
from lit_tr.evaluation.answering import ResponseFile
from lit_tr.evaluation.policies import open_policies
from lit_tr.evaluation.prompts import read_prompts
from lit_tr.evaluation.responses import append, read
from lit_tr.evaluation.sampling import Sampling

SAMPLING = Sampling(max_new_tokens=6, samples=3)


@pytest.fixture(scope="module")
def policy():
    [found] = open_policies(["embedded:tiny"])
    found.batch_tokens = 60
    return found


@pytest.fixture(scope="module")
def prompts(policy):
    rows = [
        {"prompt": f"Describe a {size} {thing}."} for size in ("big", "old") for thing in ("river", "ship", "market")
    ]
    return read_prompts(Objects(rows), policy.reader(SAMPLING)).found


def test_responses_come_in_the_order_of_prompts_and_are_told(policy, prompts, tmp_path):
    told = []
    answers = ResponseFile(tmp_path / "a.jsonl", policy, prompts, SAMPLING)
    found = answers.complete(lambda batch: told.extend(batch))
    assert [one.key for one in found] == [(prompt.id, sample) for prompt in prompts for sample in range(3)]
    assert sorted(told, key=lambda one: (int(one.id), one.sample)) == found
    assert answers.total == 18
    assert answers.missing() == []


def test_what_is_done_is_kept_and_the_rest_is_as_it_would_have_been(policy, prompts, tmp_path):
    whole = ResponseFile(tmp_path / "whole.jsonl", policy, prompts, SAMPLING).complete()
    part = ResponseFile(tmp_path / "part.jsonl", policy, prompts, SAMPLING)

    class Stopped(Exception):
        pass

    def stop(batch):
        raise Stopped

    with pytest.raises(Stopped):
        part.complete(stop)
    kept = read(part.path)
    assert 0 < len(kept) < 18
    with part.path.open("ab") as file:
        file.write(b'{"id": "0", "samp')  # as `kill -9` in the middle of a write leaves it
    told = []
    assert ResponseFile(part.path, policy, prompts, SAMPLING).complete(lambda batch: told.extend(batch)) == whole
    assert {one.key for one in told}.isdisjoint(one.key for one in kept)


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_instants_each_response_is_there_once(policy, prompts, tmp_path, seed):
    """`kill -9` of a process that generates, again and again; then it is let run to its end."""
    path, draw = tmp_path / "a.jsonl", random.Random(seed)
    with policy.active():  # so that a start takes no time to load
        pass
    expected = {(prompt.id, sample) for prompt in prompts for sample in range(3)}
    sizes = []
    for _ in range(8):
        child = os.fork()
        if not child:
            try:
                ResponseFile(path, policy, prompts, SAMPLING).complete()
            finally:
                os._exit(0)
        time.sleep(draw.uniform(0.01, 0.25))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        keys = [one.key for one in read(path)] if path.exists() else []
        assert len(keys) == len({*keys})
        assert {*keys} <= expected
        sizes.append(len(keys))
    assert sizes == sorted(sizes)
    found = ResponseFile(path, policy, prompts, SAMPLING).complete()
    assert len(read(path)) == len(found) == 18
    assert {one.key for one in found} == expected


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"sampling": Sampling(max_new_tokens=6, samples=3, temperature=0.5)}, r"sampling.temperature: 1.0, now 0.5"),
        ({"sampling": Sampling(max_new_tokens=6, samples=2)}, r"sampling.samples: 3, now 2"),
        ({"prompts": slice(2)}, r"prompts.count: 6, now 2; prompts.hash: \w+, now"),
        ({"policy": {"identity": {"weights": "x"}}}, r"policy.weights: \w+, now x"),
        ({"policy": {"name": "other"}}, r"name: embedded:tiny, now other"),
    ],
)
def test_a_file_of_other_settings_is_refused(policy, prompts, tmp_path, change, said):
    path = tmp_path / "a.jsonl"
    ResponseFile(path, policy, prompts, SAMPLING).complete()
    before = path.read_bytes()
    with pytest.raises(UserError, match=f"its responses are of other settings .*{said}"):
        ResponseFile(
            path,
            replace(policy, **change.get("policy", {})),
            prompts[change.get("prompts", slice(None))],
            change.get("sampling", SAMPLING),
        )
    assert path.read_bytes() == before


def test_a_file_that_says_nothing_of_its_settings_is_refused(policy, prompts, tmp_path):
    (tmp_path / "a.jsonl").write_text("something\n")
    with pytest.raises(UserError, match="it holds something already, and no a.settings.json beside it"):
        ResponseFile(tmp_path / "a.jsonl", policy, prompts, SAMPLING)


def test_settings_that_a_crash_cut_short_before_any_response_are_written_again(policy, prompts, tmp_path):
    (tmp_path / "a.settings.json").write_text('{"name"')
    assert len(ResponseFile(tmp_path / "a.jsonl", policy, prompts, SAMPLING).complete()) == 18
    assert json.loads((tmp_path / "a.settings.json").read_text())["sampling"]["samples"] == 3


def test_two_processes_do_not_write_one_file(policy, prompts, tmp_path):
    answers = ResponseFile(tmp_path / "a.jsonl", policy, prompts, SAMPLING)
    with (tmp_path / "a.settings.json").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another process writes its responses"):
            answers.complete()
    assert len(answers.complete()) == 18


def test_a_row_that_is_none_of_these_prompts_is_not_lost(policy, prompts, tmp_path):
    path = tmp_path / "a.jsonl"
    answers = ResponseFile(path, policy, prompts, SAMPLING)
    first = answers.complete()[0]
    append(path, [replace(first, id="of another")])
    with pytest.raises(UserError, match="id 'of another' is none of the prompts"):
        answers.complete()
