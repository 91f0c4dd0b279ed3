"""A small real server of OpenAI's protocol around a transformers model, with faults on demand."""

import json
import threading
import time
from collections import deque
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lit_tr.evaluation import generate


class Server(ThreadingHTTPServer):
    """Answers chats and completions.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer; without a chat template the last message is the prompt.
        port: its port; 0 takes a free one.
    """

    daemon_threads = True

    def __init__(self, model, tokenizer, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.model, self.tokenizer, self.lock = model, tokenizer, threading.Lock()
        self.faults = deque()  # what befalls the next requests: a status, (status, headers, body), "malformed", "drop"
        self.refuses = ()  # prompts that are too long for it
        self.requests, self.times, self.at_once, self.most_at_once = [], [], 0, 0

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def answer(self, asked, chat):
        messages = asked["messages"] if chat else [{"content": asked["prompt"]}]
        ids = self.tokenizer(messages[-1]["content"])["input_ids"]
        with self.lock:
            options = {"seed": asked["seed"], "greedy": not asked["temperature"]}
            [made] = generate(self.model, self.tokenizer, [ids], asked["max_tokens"], **options)
        said = {"message": {"role": "assistant", "content": made.text}} if chat else {"text": made.text}
        choice = {"index": 0, "finish_reason": "stop" if made.finished else "length", **said}
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(made.response), "total_tokens": 0}
        return {"id": "x", "object": "x", "created": 0, "model": asked["model"], "choices": [choice], "usage": usage}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.reply(200, {"object": "list", "data": [{"id": "tiny", "object": "model", "created": 0, "owned_by": "x"}]})

    def do_POST(self):
        server = self.server
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.requests.append(asked | {"key": self.headers["Authorization"]})
            server.times.append(time.monotonic())
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
            fault = server.faults.popleft() if server.faults else None
        try:
            self.meet(fault, asked)
        finally:
            with server.lock:
                server.at_once -= 1

    def meet(self, fault, asked):
        chat = self.path.endswith("/chat/completions")
        if fault == "drop":
            self.close_connection = True
            self.connection.close()
        elif fault == "malformed":
            self.reply(200, {"choices": []})
        elif fault is not None:
            status, headers, body = (fault, {}, {"error": {"message": "no"}}) if isinstance(fault, int) else fault
            self.reply(status, body, headers)
        elif any(text in json.dumps(asked) for text in self.server.refuses):
            self.reply(400, {"error": {"message": "too long"}})
        else:
            self.reply(200, self.server.answer(asked, chat))

    def reply(self, status, body, headers=()):
        data = json.dumps(body).encode()
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(model, tokenizer):
    """Yield a running server."""
    with Server(model, tokenizer) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
