"""Responses of a policy in a file: a JSON object a line, whole lines only, also after a crash."""

import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import BinaryIO

from lit_tr.data.example import Message, Text
from lit_tr.errors import UserError
from lit_tr.rewards.base import Candidate

TYPES: Mapping[str, tuple[type, ...]] = {
    "id": (str, int),
    "prompt": (str, list),
    "sample": (int,),
    "response": (str,),
    "policy": (str,),
    "tokens": (int, type(None)),
    "finished": (bool, type(None)),
    "reference_answer": (str, type(None)),
    "kind": (str, type(None)),
}
"""What keys of a response may hold."""
STEERED = "-steered-"
"""What stands before the strength in the name of a steered policy."""


@dataclass(frozen=True)
class Response:
    """A response to a prompt, and what is known of it. `id` and `sample` are together unique in a file.

    Args:
        id: names the prompt: its row's own id, or the row's number in its source. Samples of one prompt share it.
        prompt: text, or chat messages.
        response: text, without special tokens.
        sample: number of the response among those to its prompt, from 0.
        policy: name of the policy that gave it.
        tokens: tokens of the response, with its end token; None where a server does not say.
        finished: whether the policy ended it; False if it was cut at the limit of tokens; None where nobody knows.
        reference_answer: an answer that came with the prompt.
        chosen: the preferred response of the row.
        rejected: the other response of the row.
        kind: whether the prompt is open-ended or closed-ended, in the row's words.
        score: a judge's score.
        features: what the score is made of, by name.
        log_ratio: log-ratio of the policy to the initial policy, in nats, summed over the response.
        kl: KL divergence of the policy from the initial policy, in nats: the exact sum over the vocabulary at each
            position of the response, summed.
        token_rewards: each token of the response as text, and beta times its log-ratio, in nats.
        strength: how far the policy was steered from the initial one, if it was.
    """

    id: str
    prompt: Text
    response: str
    sample: int = 0
    policy: str = ""
    tokens: int | None = None
    finished: bool | None = None
    reference_answer: str | None = None
    chosen: Text | None = None
    rejected: Text | None = None
    kind: str | None = None
    score: float | None = None
    features: dict[str, float] | None = None
    log_ratio: float | None = None
    kl: float | None = None
    token_rewards: list[tuple[str, float]] | None = None
    strength: float | None = None

    @property
    def key(self) -> tuple[str, int]:
        """What is unique in a file: the id of the prompt and the number of the sample."""
        return self.id, self.sample

    @property
    def candidate(self) -> Candidate:
        """What a reward scores."""
        return Candidate(self.prompt, self.response, self.reference_answer, self.kind)

    def line(self) -> str:
        """Return it as a line of JSON, without keys that hold nothing, and without a line break."""
        return json.dumps({key: value for key, value in asdict(self).items() if value is not None}, ensure_ascii=False)


def as_text(prompt: Text) -> str:
    """Return a prompt as one text: of one message its content, of several their contents behind their roles."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return _content(prompt[0])
    return "\n\n".join(f"{message.get('role')}: {_content(message)}" for message in prompt)


def _content(message: Message) -> str:
    content = message.get("content")
    return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def read(path: str | Path) -> list[Response]:
    """Return the responses of a file, in its order. A last line that a crash cut short is left out.

    Keys that a `Response` does not have are left out too.

    Raises:
        UserError: there is no such file, a line is no response, or two have one id and sample; the message names it.
    """
    path = Path(path)
    try:
        *lines, last = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"{path}: there is no file of responses to read ({error.strerror})") from error
    found: dict[tuple[str, int], Response] = {}
    for number, line in enumerate([*lines, *([] if _is_torn(last) else [last])], 1):
        if not line.strip():
            continue
        response = _parsed(line, f"{path}:{number}")
        if response.key in found:
            raise UserError(f"{path}:{number}: id {response.id!r} has a sample {response.sample} already")
        found[response.key] = response
    return list(found.values())


def holds_responses(path: Path) -> bool:
    """Return whether a file begins with a response."""
    if path.suffix != ".jsonl" or not path.is_file():
        return False
    with path.open() as file:
        first = file.readline()
    try:
        row = json.loads(first)
    except json.JSONDecodeError:
        return False
    return isinstance(row, dict) and {"prompt", "response"} <= {*row}


def _parsed(line: bytes, where: str) -> Response:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise UserError(f"{where}: this is not a line of JSON ({error})") from error
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, not a {type(row).__name__}")
    if missing := [key for key in ("id", "prompt", "response") if key not in row]:
        raise UserError(f"{where}: a response has id, prompt and response; there is no {missing[0]}")
    for key, types in TYPES.items():
        if key in row and not isinstance(row[key], types):
            raise UserError(f"{where}: {key} is a {type(row[key]).__name__}")
    known = {field.name for field in fields(Response)}
    return Response(**{key: value for key, value in row.items() if key in known} | {"id": str(row["id"])})


def append(path: str | Path, responses: Iterable[Response]) -> None:
    """Write responses to the end of a file: when this returns, their lines are on the disk, whole.

    A last line that a crash cut short is removed.

    Args:
        path: the file, which is made if there is none.
        responses: the responses.
    """
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with Path(path).open("a+b") as file:
        _repair(file)
        file.write("".join(f"{one.line()}\n" for one in responses).encode())
        file.flush()
        os.fsync(file.fileno())


def write_whole(path: Path, text: str) -> None:
    """Write a file, whole or not at all; it may be one of those that the text is made of."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def _repair(file: BinaryIO) -> None:
    """Cut a file off behind its last whole line, and end that with a line break."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(end - 1, 0))
    if file.read() in (b"", b"\n"):
        return
    file.seek(0)
    last = file.read().split(b"\n")[-1]
    if _is_torn(last):
        file.truncate(end - len(last))
    else:
        file.write(b"\n")


def _is_torn(line: bytes) -> bool:
    """Whether a line without a line break is cut short: no part of a JSON object is JSON but the whole of it."""
    try:
        json.loads(line)
    except ValueError:
        return True
    return False


def by_prompt(responses: Iterable[Response]) -> dict[str, list[Response]]:
    """Return the samples of each prompt, by id, in the order of the file."""
    found: dict[str, list[Response]] = {}
    for one in responses:
        found.setdefault(one.id, []).append(one)
    return found
