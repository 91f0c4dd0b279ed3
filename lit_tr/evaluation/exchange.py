"""Files of responses that AlpacaEval and Arena-Hard take as they are."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from lit_tr.evaluation.prompts import Prompt
from lit_tr.evaluation.responses import Response, as_text

Instructions = Mapping[str, str]
"""The text of each prompt as its row has it, by id."""


def alpaca_eval(responses: Sequence[Response], asked: Instructions, name: str) -> str:
    """Return AlpacaEval's `model_outputs`: a JSON list, with the instruction by which it finds the baseline's output.

    Source: README of tatsu-lab/alpaca_eval, "Use"; arXiv 2404.04475.
    """
    rows = [
        {"dataset": "lit_tr", "instruction": asked[one.id], "output": one.response, "generator": name}
        for one in responses
    ]
    return json.dumps(rows, indent=2, ensure_ascii=False) + "\n"


def arena_hard(responses: Sequence[Response], asked: Instructions, name: str) -> str:
    """Return `model_answer/NAME.jsonl` of Arena-Hard v2.0; `uid` is the id of the prompt.

    Source: gen_answer.py of lmarena/arena-hard-auto. Its `utils/add_markdown_info.py` adds what style control reads.
    """
    return _lines({**_row(one, name, asked), "metadata": _length(one)} for one in responses)


def _row(one: Response, name: str, asked: Instructions) -> dict[str, Any]:
    turns = [
        {"role": "user", "content": asked[one.id]},
        {"role": "assistant", "content": {"answer": one.response}},
    ]
    return {"uid": one.id, "ans_id": _answer_id(one, name), "model": name, "messages": turns, "tstamp": time.time()}


def arena_hard_v01(responses: Sequence[Response], asked: Instructions, name: str) -> str:
    """Return `model_answer/NAME.jsonl` of Arena-Hard v0.1 (arXiv 2406.11939); `question_id` is the id of the prompt."""
    return _lines(
        {
            "question_id": one.id,
            "answer_id": _answer_id(one, name),
            "model_id": name,
            "choices": [{"index": 0, "turns": [{"content": one.response, **_length(one)}]}],
            "tstamp": time.time(),
        }
        for one in responses
    )


FORMATS: Mapping[str, tuple[Callable[[Sequence[Response], Instructions, str], str], str]] = {
    "alpaca_eval": (alpaca_eval, ".json"),
    "arena_hard": (arena_hard, ".jsonl"),
    "arena_hard_v01": (arena_hard_v01, ".jsonl"),
}
"""What writes a format, and the ending of its files."""


def write_formats(
    formats: Sequence[str], responses: Sequence[Response], prompts: Sequence[Prompt], path: Path
) -> list[Path]:
    """Write responses in other formats, each below a folder of the format's name; return the files.

    These formats know one response to a prompt: the second samples are in a file of their own, and so on. A file is
    named as the model in it, for Arena-Hard finds answers by the name of the file.

    Args:
        formats: names in `FORMATS`.
        responses: the responses of one policy.
        prompts: their prompts.
        path: the file of responses, which the others are named after.
    """
    asked = {one.id: as_text(one.shown) if one.raw is None else one.raw for one in prompts}
    written = []
    for format in formats:
        write, ending = FORMATS[format]
        for sample in sorted({one.sample for one in responses}):
            name = path.stem if sample == 0 else f"{path.stem}-{sample}"
            file = path.parent / format / f"{name}{ending}"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(write([one for one in responses if one.sample == sample], asked, name))
            written.append(file)
    return written


def _answer_id(one: Response, name: str) -> str:
    return str(uuid5(NAMESPACE_URL, f"{name}\n{one.id}\n{one.sample}\n{one.response}"))


def _length(one: Response) -> dict[str, int]:
    """Return the number of tokens, if it is known: where it is not there, Arena-Hard's tools count themselves."""
    return {} if one.tokens is None else {"token_len": one.tokens}


def _lines(rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
