"""A small real server on the loopback that answers as an OpenAI-compatible one does, by a rule, and fails as told."""

import json
import math
import re
import socket
import struct
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

KEY = "sk-very-secret-0123456789"
PROMPT_TOKENS, TOKENS = 100, 1


def longest(prompt):
    """Return the log-probs of a judge that prefers the longer answer with probability 0.9."""
    first, second = shown(prompt)
    p = 0.9 if len(first) > len(second) else 0.1
    return {"A": math.log(p), "B": math.log(1 - p)}


def always_a(prompt):
    return {"A": math.log(0.99), "B": math.log(0.01)}


def shown(prompt):
    return [re.search(rf"<answer {name}>\n(.*?)\n</answer {name}>", prompt, re.DOTALL)[1] for name in "AB"]


class Server:
    """Answers by `rule`, from a prompt to log-probs of first tokens, or to text; `failures` come first, one a request.

    A failure is a status, a status with headers, "die" (closes the connection), "slow" (answers too late), or the
    bytes of a body. `asked` counts the prompts that came, `answered` those that got a right answer.
    """

    def __init__(self, rule=longest, failures=(), log_probs=True, usage=True):
        self.rule, self.failures, self.log_probs, self.usage = rule, list(failures), log_probs, usage
        self.asked, self.answered, self.requests, self.lock = Counter(), Counter(), [], threading.Lock()
        self.times = []

    def __enter__(self):
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def do_POST(self):
                server.handle(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.http.server_port}/v1"

    def handle(self, http):
        request = json.loads(http.rfile.read(int(http.headers["content-length"])))
        prompt = request["messages"][-1]["content"]
        with self.lock:
            self.asked[prompt] += 1
            self.times.append(time.monotonic())
            self.requests.append((request, dict(http.headers)))
            failure = self.failures.pop(0) if self.failures else None
        if failure == "die":
            http.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            http.connection.close()
            http.close_connection = True
            return
        if failure == "slow":
            time.sleep(1.5)
        status, headers, body = self.reply(request, prompt, failure)
        if status == 200 and not isinstance(failure, bytes):
            with self.lock:
                self.answered[prompt] += 1
        http.send_response(status)
        for name, value in {"content-type": "application/json", "content-length": str(len(body)), **headers}.items():
            http.send_header(name, value)
        http.end_headers()
        http.wfile.write(body)

    def reply(self, request, prompt, failure):
        if isinstance(failure, bytes):
            return 200, {}, failure
        if failure not in (None, "slow"):
            status, headers, message = failure if isinstance(failure, tuple) else (failure, {}, "no")
            return status, headers, json.dumps({"error": {"message": message}}).encode()
        return 200, {}, json.dumps(self.completion(request, self.rule(prompt))).encode()

    def completion(self, request, said):
        choice = {"index": 0, "finish_reason": "length", "message": {"role": "assistant", "content": said}}
        if isinstance(said, dict):
            choice["message"]["content"] = max(said, key=said.get)
            if request.get("logprobs") and self.log_probs:
                likeliest = [{"token": token, "logprob": value} for token, value in said.items()]
                choice["logprobs"] = {"content": [likeliest[0] | {"top_logprobs": likeliest}]}
        used = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": TOKENS, "total_tokens": PROMPT_TOKENS + TOKENS}
        return {"id": "x", "object": "chat.completion", "choices": [choice]} | ({"usage": used} if self.usage else {})
