import json

import pytest

from lit_tr.errors import UserError
from lit_tr.evaluation.responses import Response, append, as_text, by_prompt, read

CHAT = [{"role": "user", "content": "Grüß Gott\nzwei"}]


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "new" / "responses.jsonl"
    first = Response("1", "a?", "b\u2028c\n", policy="p", tokens=3, finished=True, reference_answer="r")
    second = Response("1", CHAT, "", sample=1, score=-0.5, token_rewards=[["x", 0.25]])
    append(path, [first])
    append(path, [second])
    assert read(path) == [first, second]
    assert json.loads(path.read_text().split("\n")[0]) == {
        **{"id": "1", "prompt": "a?", "response": "b\u2028c\n", "sample": 0, "policy": "p", "tokens": 3},
        **{"finished": True, "reference_answer": "r"},
    }


def test_a_torn_line_is_left_out_and_written_over(tmp_path):
    path = tmp_path / "responses.jsonl"
    append(path, [Response("1", "a", "b"), Response("2", "a", "ü")])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for cut in range(first, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert [one.id for one in read(path)] == ["1"]
        append(path, [Response("3", "a", "b")])
        assert [one.id for one in read(path)] == ["1", "3"]


def test_a_last_line_without_a_line_break_is_a_line(tmp_path):
    path = tmp_path / "responses.jsonl"
    path.write_text(Response("1", "a", "b").line())
    assert [one.id for one in read(path)] == ["1"]
    append(path, [Response("2", "a", "b")])
    assert [one.id for one in read(path)] == ["1", "2"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", ":2: this is not a line of JSON"),
        ("[1]", ":2: expected a JSON object, not a list"),
        ('{"id": "1", "prompt": "a"}', ":2: a response has id, prompt and response; there is no response"),
        ('{"id": "2", "prompt": "a", "response": null}', ":2: response is a NoneType"),
        ('{"id": 1, "prompt": "a", "response": "b"}', ":2: id '1' has a sample 0 already"),
    ],
)
def test_a_line_that_is_no_response_is_named(tmp_path, line, said):
    path = tmp_path / "responses.jsonl"
    path.write_text(Response("1", "a", "b").line() + f"\n{line}\n")
    with pytest.raises(UserError, match=said):
        read(path)


def test_no_file_is_said(tmp_path):
    with pytest.raises(UserError, match="there is no file of responses"):
        read(tmp_path / "none.jsonl")


def test_prompts_as_text_and_samples_by_prompt():
    assert as_text("a") == "a"
    assert as_text(CHAT) == CHAT[0]["content"]
    assert as_text([{"role": "system", "content": "s"}, *CHAT]) == f"system: s\n\nuser: {CHAT[0]['content']}"
    one, two, three = Response("1", "a", "b"), Response("2", "a", "b"), Response("1", "a", "c", sample=1)
    assert by_prompt([one, two, three]) == {"1": [one, three], "2": [two]}
