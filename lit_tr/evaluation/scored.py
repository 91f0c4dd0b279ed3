"""Responses of policies, or of preferences, scored by a reward."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lit_tr.data.bad_rows import BadRow, BadRows
from lit_tr.data.example import Example
from lit_tr.data.rows import Record, Source, as_source
from lit_tr.errors import BadRowError, UserError
from lit_tr.evaluation.prompts import answer_and_kind
from lit_tr.evaluation.responses import Response, as_text, holds_responses, read
from lit_tr.rewards import Scorer, explain
from lit_tr.rewards.base import Features

CHOSEN, REJECTED = PAIR = ("chosen", "rejected")
"""The names of the two policies that the responses of preferences count as."""


@dataclass(frozen=True)
class Responses:
    """Responses to be scored.

    Args:
        by_policy: by the name of their policy; those of preferences are of `chosen` and `rejected`, in the same order.
        bad: rows of preferences that are left out.
    """

    by_policy: Mapping[str, Sequence[Response]]
    bad: BadRows = field(default_factory=lambda: BadRows(0))

    @property
    def all(self) -> list[Response]:
        """The responses of all policies."""
        return [one for those in self.by_policy.values() for one in those]


def open_responses(sources: Sequence[Source | str | Path], max_bad_rows: float = 0.01) -> Responses:
    """Return responses of some files of `lit-tr generate`, or of preferences of any format.

    Policies of one name in files of several folders get the names of these before their own.

    Args:
        sources: files of responses; or one source of preferences.
        max_bad_rows: how many rows of preferences may be left out: a share below 1, a count from 1 on.

    Raises:
        UserError: a source cannot be read, preferences are given with others, or too many rows are bad.
    """
    other = [one for one in sources if isinstance(one, Source) or not holds_responses(Path(one))]
    if not other:
        return Responses(_by_policy([Path(str(one)) for one in sources]))
    if len(sources) > 1:
        raise UserError(
            f"{other[0]}: it is no file of responses, with id, prompt and response in each line; preferences are "
            "scored one source at a time"
        )
    return preferences(as_source(other[0]), max_bad_rows)


def _by_policy(files: Sequence[Path]) -> dict[str, list[Response]]:
    found: dict[tuple[str, Path], list[Response]] = {}
    for file in files:
        for one in read(file):
            found.setdefault((one.policy or file.stem, file), []).append(one)
    names = [name for name, _ in found]
    made = {
        name if names.count(name) == 1 else f"{file.parent.name}-{name}": rows for (name, file), rows in found.items()
    }
    if len(made) < len(found):
        raise UserError("two files have responses of policies of one name: put them into folders of other names")
    return made


def preferences(source: Source, max_bad_rows: float = 0.01) -> Responses:
    """Return the responses of pairs of any format.

    Raises:
        UserError: there are no pairs, or too many bad rows.
    """
    bad, pairs = BadRows(max_bad_rows, option="max_bad_rows"), list[tuple[Response, Response]]()
    for number, record in enumerate(source.records()):
        try:
            found = _pairs(record, number)
        except BadRowError as error:
            bad.add(1, [BadRow.of(record.location, error)], judge=False)
        else:
            bad.add(len(found), (), judge=False)
            pairs += found
    bad.add(0, ())
    if not pairs:
        raise UserError(f"{source}: there are no pairs in it")
    chosen, rejected = zip(*pairs, strict=True)
    return Responses({CHOSEN: chosen, REJECTED: rejected}, bad)


def _pairs(record: Record, number: int) -> list[tuple[Response, Response]]:
    if isinstance(record.row, BadRowError):
        raise record.row
    if record.row is None:
        return []
    answer, kind = answer_and_kind(record.row)
    return [
        _pair(one, f"{number}.{i}" if i else f"{number}", answer, kind)
        for i, one in enumerate(record.conversion(record.row))
    ]


def _pair(example: Example, name: str, answer: str | None, kind: str | None) -> tuple[Response, Response]:
    if example.chosen is None or example.rejected is None:
        raise BadRowError("the row is no pair")
    prompt = example.prompt
    if example.system and isinstance(prompt, str):
        prompt = f"{example.system}\n\n{prompt}"
    made = (
        Response(name, prompt, as_text(text), policy=policy, reference_answer=answer, kind=kind)
        for policy, text in zip(PAIR, (example.chosen, example.rejected), strict=True)
    )
    return next(made), next(made)


def scored(responses: Responses, scorer: Scorer) -> Responses:
    """Return the responses with a scorer's scores, and features where it tells them; None is a score that is NaN.

    Raises:
        UserError: no response has a score.
    """
    every = responses.all
    found = explain(scorer, [one.candidate for one in every])
    if not any(math.isfinite(one["score"]) for one in found):
        raise UserError(f"{scorer.name}: it gives no score to any of the {len(every)} responses")
    known = iter(found)
    rows = {name: [with_score(one, next(known)) for one in those] for name, those in responses.by_policy.items()}
    return replace(responses, by_policy=rows)


def scored_together(parts: Sequence[Responses], scorer: Scorer) -> list[Responses]:
    """Return several responses as `scored` does, in one call: what a scorer takes of a sample is then the same for all.

    Raises:
        UserError: no response has a score.
    """
    named = {f"{i} {name}": those for i, part in enumerate(parts) for name, those in part.by_policy.items()}
    found = scored(Responses(named), scorer).by_policy
    return [
        replace(part, by_policy={name: found[f"{i} {name}"] for name in part.by_policy}) for i, part in enumerate(parts)
    ]


def with_score(response: Response, features: Features) -> Response:
    """Return a response with its score, None where it is NaN, and its other features."""
    finite = {name: value for name, value in features.items() if math.isfinite(value)}
    return replace(response, score=finite.pop("score", None), features=finite or None)
