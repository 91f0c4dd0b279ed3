import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from huggingface_hub import constants

from lit_tr.embedded.model import check_hub, resolve
from lit_tr.errors import UserError


def test_a_hub_that_does_not_answer_is_one_message(no_hub):
    with pytest.raises(UserError, match=f"nobody/nothing is no folder .* {no_hub} does not answer: give a folder"):
        resolve("nobody/nothing")


def test_data_sets_are_looked_for_among_data_sets(no_hub, tmp_path):
    (tmp_path / "datasets--some--cached").mkdir()
    check_hub("some/cached", "dataset")
    with pytest.raises(UserError, match="does not answer"):
        check_hub("some/cached")


def test_folders_cached_models_and_offline_runs_ask_no_hub(no_hub, tmp_path, monkeypatch):
    (tmp_path / "models--some--cached").mkdir()
    assert resolve(str(tmp_path)) == str(tmp_path)
    assert resolve("some/cached") == "some/cached"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve("nobody/offline") == "nobody/offline"


def test_a_hub_that_answers_anything_is_left_to_its_client(no_hub, monkeypatch):
    class Answers(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(404)

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert resolve("nobody/there") == "nobody/there"
        server.shutdown()
