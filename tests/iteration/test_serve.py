"""A server in a process of its own, as `vllm serve` is one."""

import json
import shlex
import socket
import sys
import time
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_tr.commands import main
from lit_tr.errors import UserError
from lit_tr.iteration import Serve
from tests.commands import rounds
from tests.evaluation.server import serving

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
from tests.evaluation.server import Server

folder, port = sys.argv[1], int(sys.argv[2])
model = AutoModelForCausalLM.from_pretrained(folder).eval()
Server(model, AutoTokenizer.from_pretrained(folder), port).serve_forever()
"""


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def url(port):
    return f"http://127.0.0.1:{port}/v1"


@pytest.mark.slow
def test_a_round_takes_its_candidates_from_a_server_of_its_policy(llama_dir, tmp_path, port, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "server.py").write_text(SCRIPT)
    serve = {"command": f"{sys.executable} server.py {{policy}} {port}", "url": url(port)}
    config = rounds.write(tmp_path / "rounds.yaml", llama_dir, output="my out", rounds=2, serve=serve)
    main(["iterate", "--config", config])
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)
    for number in (1, 2):
        folder = tmp_path / "my out" / f"round_{number}"
        settings = json.loads((folder / "candidates" / "0.settings.json").read_text())
        assert settings["policy"]["served"]
        assert len((folder / "candidates" / "0.jsonl").read_text().splitlines()) == 18
        assert json.loads((folder / "round.json").read_text())["candidates"] == 18


def test_another_server_at_the_address_is_not_asked(llama_dir):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(llama_dir), AutoTokenizer.from_pretrained(llama_dir)
    with (
        serving(model, tokenizer) as server,
        pytest.raises(UserError, match="something answers at http://127.0.0.1:.* already, perhaps with other weights"),
        Serve("never-started", server.address).running(),
    ):
        pass


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("false", "'false' ended with exit code 1 before it answered"),
        ("no-such-server --port 1", "'no-such-server --port 1' cannot be started"),
        ("sleep 60", "nothing answers at http://127.0.0.1:.* after 0.1 s"),
    ],
)
def test_a_server_that_does_not_start_is_named(command, said, port):
    began = time.monotonic()
    with pytest.raises(UserError, match=said), Serve(command, url(port), timeout=0.1).running():
        pass
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("command", ["serve {policy} --lora x={policy}", "serve '{policy}' \"--lora\" x='{policy}'"])
def test_a_folder_with_a_space_is_one_word_of_the_command(command):
    found = Serve(command, url(1), model="{base}", at_once=3).named({"policy": "my runs/it's", "base": "B"})
    assert shlex.split(found.command) == ["serve", "my runs/it's", "--lora", "x=my runs/it's"]
    assert (found.url, found.model, found.at_once) == (url(1), "B", 3)


@pytest.mark.parametrize("command", ["", "vllm 'serve"])
def test_a_command_that_is_none_is_refused(command):
    with pytest.raises(UserError, match="serve: the command"):
        Serve(command, url(1))
