import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
import yaml

from lit_tr.commands import main
from lit_tr.commands.model_card import card
from tests.runs import fails, folder


class Hub(BaseHTTPRequestHandler):
    """What a hub answers to who uploads a folder."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.asked.append((self.path, self.headers["Authorization"]))
        if self.headers["Authorization"] != "Bearer secret":
            return self.answer(401, {"error": "who are you?"})
        if self.path.endswith("/preupload/main"):
            modes = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return self.answer(200, {"files": [{"path": f["path"], **modes} for f in json.loads(body)["files"]]})
        if self.path.endswith("/commit/main"):
            lines = [json.loads(line) for line in body.splitlines()]
            sent = {one["value"]["path"]: one["value"]["content"] for one in lines if one["key"] == "file"}
            self.server.files = {name: base64.b64decode(content) for name, content in sent.items()}
            url = f"http://127.0.0.1:{self.server.server_port}/me/mine/commit/1"
            return self.answer(200, {"success": True, "commitOid": "1", "commitUrl": url})
        return self.answer(200, {"url": "http://127.0.0.1/me/mine", "id": "1"})

    def answer(self, code, content):
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def do_GET(self):
        self.answer(404, {})

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked, server.files = [], {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield server
    server.shutdown()


@pytest.fixture
def checkpoint(config, tmp_path):
    main(["fit", f"--config={config}", "--trainer.max_steps=2", "--trainer.val_check_interval=2"])
    return folder(tmp_path / "run") / "checkpoints" / "last.ckpt"


def test_an_exported_folder_says_what_it_is(checkpoint, tmp_path, llama_dir):
    main(["export", f"--checkpoint={checkpoint}", f"--output={tmp_path / 'mine'}"])
    text = (tmp_path / "mine" / "README.md").read_text()
    _, metadata, body = text.split("---\n", 2)
    assert yaml.safe_load(metadata)["library_name"] == "transformers"
    assert "base_model" not in yaml.safe_load(metadata)  # a folder of this machine is no address for others
    assert body.strip().startswith("# mine")
    for said in (
        '`DPO` {"beta": 0.1',
        "`CopyReference`",
        '`SoftReferenceUpdate` {"alpha": 0.5',
        "**optimizer steps**: `2`",
    ):
        assert said in body
    assert "| loss | 0." in body
    assert "2404.09656" in body


def test_a_hub_id_is_named_as_the_base():
    saved = {"hyper_parameters": {}, "global_step": 1}
    text = card("x", saved, "some/model", "policy", is_adapter=True, checkpoint=Path("a/b/c.ckpt"))
    metadata = yaml.safe_load(text.split("---\n", 2)[1])
    assert metadata["base_model"] == "some/model"
    assert metadata["library_name"] == "peft"


def test_a_folder_is_uploaded_whole(checkpoint, tmp_path, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "secret")
    main(["export", f"--checkpoint={checkpoint}", f"--output={tmp_path / 'mine'}", "--push=me/mine"])
    assert "It is uploaded: " in capsys.readouterr().out
    assert {*hub.files} == {path.name for path in (tmp_path / "mine").iterdir()}
    assert hub.files["model.safetensors"] == (tmp_path / "mine" / "model.safetensors").read_bytes()
    assert "secret" not in "".join(content.decode(errors="replace") for content in hub.files.values())


def test_a_hub_that_refuses_is_named_and_the_folder_stays(checkpoint, tmp_path, hub, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "wrong")
    error = fails(capsys, "export", f"--checkpoint={checkpoint}", f"--output={tmp_path / 'mine'}", "--push=me/mine")
    assert "--push me/mine: the hub refused it (is HF_TOKEN set" in error
    assert (tmp_path / "mine" / "model.safetensors").exists()
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 2
