"""Judgements: what a judge said of each pair, in a file of JSON lines."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from lit_tr.data.example import Text
from lit_tr.errors import UserError
from lit_tr.evaluation.judges.base import Judge, Pair, Verdict
from lit_tr.evaluation.responses import Response, write_whole


@dataclass(frozen=True)
class Judgement:
    """What a judge said of a pair by one criterion.

    Args:
        id: names the prompt; samples of a prompt share it.
        preference: for A over B in [0, 1], 0.5 is a tie; None where the judge did not say it in all orders asked.
        response_a: the first policy's response.
        response_b: the second policy's.
        sample: number of the sample.
        criterion: what was asked for.
        prompt: text, or the messages of a chat.
        orders: probability that the response shown first is better, with A first and with B first; None where that
            was not asked or cannot be read.
        unparsable: answers that cannot be read, with A first and with B first: 0 or 1 each.
        judge: name of the judge.
    """

    id: str
    preference: float | None
    response_a: str
    response_b: str
    sample: int = 0
    criterion: str = "overall"
    prompt: Text = ""
    orders: Sequence[float | None] = (None, None)
    unparsable: Sequence[int] = (0, 0)
    judge: str = ""

    @classmethod
    def of(cls, pair: Pair, verdict: Verdict, criterion: str, judge: str) -> "Judgement":
        """Return the judgement of a pair."""
        shown = {name: getattr(pair, name) for name in ("id", "sample", "prompt", "response_a", "response_b")}
        orders = (verdict.first_ab, verdict.first_ba)
        return cls(
            **shown,
            preference=verdict.preference,
            criterion=criterion,
            judge=judge,
            orders=orders,
            unparsable=verdict.unparsable,
        )


class Joined(NamedTuple):
    """Pairs of two files of responses, and how many responses are in one file alone."""

    pairs: list[Pair]
    only_a: int
    only_b: int


def judge_all(judge: Judge, pairs: Sequence[Pair], criterion: str = "overall") -> list[Judgement]:
    """Return what a judge says of pairs."""
    verdicts = judge.compare(pairs)
    return [Judgement.of(pair, verdict, criterion, judge.name) for pair, verdict in zip(pairs, verdicts, strict=True)]


def join(a: Iterable[Response], b: Iterable[Response]) -> Joined:
    """Pair the responses of two policies by prompt and sample, in the order of the first.

    Raises:
        UserError: an id names different prompts, or nothing is in both.
    """
    ours, theirs = ({one.key: one for one in side} for side in (a, b))
    both = [key for key in ours if key in theirs]
    for key in both:
        if ours[key].prompt != theirs[key].prompt:
            raise UserError(
                f"id {key[0]!r} names one prompt in the first file and another one in the second; generate both from "
                "the same prompts"
            )
    if not both:
        raise UserError("no id and sample is in both files of responses; generate both from the same prompts")
    pairs = [_pair(ours[key], theirs[key]) for key in both]
    return Joined(pairs, len(ours) - len(both), len(theirs) - len(both))


def _pair(a: Response, b: Response) -> Pair:
    answer, kind = a.reference_answer or b.reference_answer, a.kind or b.kind
    return Pair(a.prompt, a.response, b.response, a.id, a.sample, answer, kind)


def write(path: Path, judgements: Iterable[Judgement]) -> None:
    """Write a file of judgements, whole or not at all."""
    write_whole(path, "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in judgements))


def read(path: str | Path) -> list[Judgement]:
    """Read a file of judgements, or `judgements.jsonl` in a folder.

    Raises:
        UserError: it cannot be read, or a line is no judgement; the message names the line.
    """
    path = Path(path)
    path = path / "judgements.jsonl" if path.is_dir() else path
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise UserError(f"{path}: there is no file of judgements to read ({error.strerror})") from error
    return [_parsed(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if line.strip()]


def _parsed(line: str, where: str) -> Judgement:
    known = {field.name for field in fields(Judgement)}
    try:
        row: dict[str, Any] = json.loads(line)
        judgement = Judgement(**{key: value for key, value in row.items() if key in known})
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{where}: this is no judgement as `lit-tr judge` writes it ({error})") from error
    said = [judgement.preference, *judgement.orders]
    if not all(value is None or (isinstance(value, int | float) and 0 <= value <= 1) for value in said):
        raise UserError(f"{where}: preference and orders must be null or in [0, 1]")
    return judgement
