import os
import subprocess
import sys
import time
from functools import partial

import pytest

from lit_tr.embedded import SyntheticPairs
from lit_tr.errors import BadRowError, UserError
from lit_tr.evaluation.prompts import read_prompts, source_of
from lit_tr.evaluation.sampling import Sampling
from lit_tr.iteration.spread import Spread, on_devices, shared_out
from lit_tr.iteration.training import Chain
from lit_tr.policy import PretrainedPolicy

SAMPLING = Sampling(samples=2, max_new_tokens=6)


@pytest.fixture
def chain(tmp_path, llama_dir):
    return Chain(PretrainedPolicy(llama_dir), tmp_path)


def requests(policy):
    prompts = read_prompts(source_of(SyntheticPairs(size=8)), policy.reader(SAMPLING)).found
    return [(one, sample) for one in prompts for sample in range(2)]


def by_key(batches):
    found = [one for batch in batches for one in batch]
    assert len({one.key for one in found}) == len(found)
    return {one.key: one for one in found}


def test_a_part_keeps_its_pieces_whatever_is_left_of_the_work():
    work = [((f"{i}", sample), (i, sample)) for i in range(50) for sample in range(2)]
    every = shared_out(work, 3)
    assert sorted(piece for part in every for piece in part) == [piece for _, piece in work]
    assert all(len(part) > 20 for part in every)
    left = shared_out(work[37:], 3)
    assert left == [[piece for piece in part if piece >= (18, 1)] for part in every]


@pytest.mark.slow  # each process imports for itself
def test_two_processes_respond_as_one_does(chain):
    there = partial(chain.measured, 0, 200)
    alone, both = there(), Spread(there(), there, ["cpu", "cpu"])
    asked = requests(both)
    assert (both.name, both.identity) == (alone.name, alone.identity)
    assert by_key(both.respond(asked, SAMPLING)) == by_key(alone.respond(asked, SAMPLING))
    assert "_loaded" not in vars(both.policy)


def of_a_bad_device(device):
    raise UserError(f"there is no {device}")


def ends(device):
    raise SystemExit(3)


@pytest.mark.slow
def test_what_goes_wrong_in_a_process_is_told(chain):
    policy = chain.opened(0)
    with pytest.raises(UserError, match="there is no cpu"):
        [*Spread(policy, of_a_bad_device, ["cpu", "cpu"]).respond(requests(policy), SAMPLING)]
    with pytest.raises(UserError, match="round_0: the process on cpu ended; the same command goes on"):
        [*Spread(policy, ends, ["cpu", "cpu"]).respond(requests(policy), SAMPLING)]


class TwoArgumentsError(Exception):
    """Such as openai's: it is pickled, and cannot be made again."""

    def __init__(self, text, *, response):
        super().__init__(text)


def fails_with(kind, device, part):
    if kind is BadRowError:
        raise BadRowError("too long", "9 tokens")
    raise TwoArgumentsError("no tokens left", response=429)


@pytest.mark.slow
def test_what_a_process_raises_keeps_name_message_and_traceback():
    with pytest.raises(RuntimeError, match="^no tokens left$") as found:
        [*on_devices("judge", ["cpu"], partial(fails_with, TwoArgumentsError), [[1]])]
    assert found.type.__name__ == "TwoArgumentsError"
    assert "in fails_with" in str(found.value.__cause__)
    with pytest.raises(UserError, match=r"^too long \(9 tokens\)$"):
        [*on_devices("judge", ["cpu"], partial(fails_with, BadRowError), [[1]])]


def never_ends(device, part):
    yield os.getpid()
    time.sleep(600)


KILLED = """
from lit_tr.iteration.spread import on_devices
from tests.iteration.test_spread import never_ends

if __name__ == "__main__":
    for pid in on_devices("judge", ["cpu", "cpu"], never_ends, [[1], [2]]):
        print(pid, flush=True)
"""


def runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"  # ended, and not yet waited for


@pytest.mark.slow
def test_processes_end_with_the_first_one_that_is_killed(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    first = subprocess.Popen([sys.executable, str(tmp_path / "killed.py")], stdout=subprocess.PIPE, text=True)
    pids = [int(first.stdout.readline()) for _ in range(2)]
    assert all(map(runs, pids))
    first.kill()
    first.wait()
    until = time.monotonic() + 30
    while any(map(runs, pids)):
        assert time.monotonic() < until
        time.sleep(0.1)
