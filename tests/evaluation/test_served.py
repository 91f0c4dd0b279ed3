import os
import socket

import pytest

from lit_tr.data import Objects
from lit_tr.errors import UserError
from lit_tr.evaluation.answering import ResponseFile
from lit_tr.evaluation.prompts import read_prompts
from lit_tr.evaluation.responses import read
from lit_tr.evaluation.sampling import Sampling
from lit_tr.evaluation.served import ServedPolicy, address
from lit_tr.policy import PretrainedPolicy
from tests.evaluation.server import serving

TEXTS = [f"Describe a {word} river." for word in ("cold", "warm", "loud", "quiet", "big", "small")]
SAMPLING = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module")
def model():
    return PretrainedPolicy("embedded:tiny").load()


@pytest.fixture
def server(model, tokenizer, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving(model, tokenizer) as running:
        yield running


def answers(server, path, texts=TEXTS, sampling=SAMPLING, chat=True, **options):
    policy = ServedPolicy(server.address, **{"retries": 2, "at_once": 3, **options})
    prompts = read_prompts(Objects([{"prompt": text} for text in texts], chat=chat), policy.reader(sampling)).found
    return ResponseFile(path, policy, prompts, sampling)


def test_responses_of_a_server(server, tmp_path):
    path = tmp_path / "tiny.jsonl"
    found = answers(server, path, sampling=Sampling(max_new_tokens=8, samples=2)).complete()
    assert [(one.id, one.sample) for one in found] == [(str(i), sample) for i in range(6) for sample in range(2)]
    assert {one.policy for one in found} == {"tiny"}  # the only model that it has
    assert {one.tokens for one in found if not one.finished} == {8}
    assert all(one.tokens <= 8 for one in found if one.finished)
    assert found[0].response != found[1].response
    assert len({asked["seed"] for asked in server.requests}) == 12
    assert server.requests[0]["messages"][0]["role"] == "user"
    assert 1 < server.most_at_once <= 3
    assert answers(server, path, sampling=Sampling(max_new_tokens=8, samples=2)).complete() == found
    assert len(server.requests) == 12  # nothing was asked twice


def test_text_that_is_to_stay_text_goes_to_completions(server, tmp_path):
    answers(server, tmp_path / "a.jsonl", TEXTS[:1], Sampling(max_new_tokens=4, temperature=0), chat=False).complete()
    [asked] = server.requests
    assert (asked["prompt"], asked["temperature"]) == (TEXTS[0], 0.0)
    assert "messages" not in asked


@pytest.mark.parametrize(
    "faults",
    [[500], [503, 500], ["drop"], [429], [(429, {"Retry-After": "1"}, {})]],
    ids=["500", "500 twice", "dropped", "429", "Retry-After"],
)
def test_passing_faults_are_tried_again(server, tmp_path, faults):
    server.faults.extend(faults)
    found = answers(server, tmp_path / "a.jsonl", at_once=1).complete()
    assert len(found) == 6
    assert len(server.requests) == 6 + len(faults)
    if isinstance(faults[0], tuple):
        assert server.times[1] - server.times[0] >= 1


def test_a_server_that_dies_is_said_and_what_it_gave_is_kept(server, tmp_path):
    path = tmp_path / "a.jsonl"
    server.faults.extend([None, None, *[500] * 9])
    with pytest.raises(UserError, match="status 500"):
        answers(server, path, at_once=1, retries=1).complete()
    kept = read(path)
    assert len(kept) == 2
    server.faults.clear()
    before = len(server.requests)
    found = answers(server, path).complete()
    assert len(server.requests) == before + 4
    assert [one for one in found if one in kept] == kept
    assert len(found) == 6


def test_one_request_that_is_refused_is_counted_and_the_others_go_on(server, tmp_path):
    server.refuses = (TEXTS[2],)
    made = answers(server, tmp_path / "a.jsonl")
    assert [one.id for one in made.complete()] == ["0", "1", "3", "4", "5"]
    assert made.policy.refused == [
        f"{server.address}/v1: prompt 2: status 400 " + '({"error": {"message": "too long"}})'
    ]
    assert [prompt.id for prompt, _ in made.missing()] == ["2"]


def test_an_answer_without_text_is_counted(server, tmp_path):
    server.faults.append("malformed")
    made = answers(server, tmp_path / "a.jsonl", at_once=1)
    assert len(made.complete()) == 5
    assert "holds no text" in made.policy.refused[0]


@pytest.mark.parametrize(("status", "said"), [(401, "set OPENAI_API_KEY"), (404, "status 404")])
def test_what_no_request_can_get_by_ends_the_run(server, tmp_path, status, said):
    server.faults.extend([status] * 9)
    with pytest.raises(UserError, match=said):
        answers(server, tmp_path / "a.jsonl").complete()


def test_nobody_at_the_address_is_said():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UserError, match=f"{nobody}/v1: cannot be reached"):
        ServedPolicy(nobody, retries=0)


def test_the_key_goes_to_the_server_and_into_no_file(server, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    answers(server, tmp_path / "a.jsonl").complete()
    assert {asked["key"] for asked in server.requests} == {"Bearer sk-very-secret"}
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"very-secret" in path.read_bytes()]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://h:8000", "http://h:8000/v1"),
        ("http://h:8000/", "http://h:8000/v1"),
        ("https://h/api/v1/", "https://h/api/v1"),
        ("h:8000", "give its address"),
        ("http://me:secret@h", "leave name and password out"),
    ],
)
def test_addresses(given, expected):
    if expected.startswith("http"):
        assert address(given) == expected
        return
    with pytest.raises(UserError, match=expected) as raised:
        address(given)
    assert "secret" not in str(raised.value)


def test_no_client_is_said(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"pip install 'lit-tr\[evaluation\]'"):
        ServedPolicy("http://127.0.0.1:1", "x")


@pytest.mark.slow
@pytest.mark.skipif("LIT_TR_SERVER" not in os.environ, reason="LIT_TR_SERVER is the address of a running server")
def test_a_server_of_ones_own(tmp_path):
    policy = ServedPolicy(os.environ["LIT_TR_SERVER"], os.environ.get("LIT_TR_SERVED_MODEL"))
    prompts = read_prompts(Objects([{"prompt": text} for text in TEXTS]), policy.reader(SAMPLING)).found
    found = ResponseFile(tmp_path / "a.jsonl", policy, prompts, SAMPLING).complete()
    assert len(found) == 6
    assert all(one.response for one in found)
