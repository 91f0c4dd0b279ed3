"""What the reader of a report shows: prompts, the responses of the policies side by side, and who won."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from lit_tr.evaluation.page.found import Comparison, Found, Row

Key = tuple[str, str, int]
"""What names a response: the id and the text of its prompt, and its number among the samples."""
TIE, UNPARSABLE = -1, -2


class Contest(NamedTuple):
    """Who won by a criterion: for each response's key the number of a name, `TIE` or `UNPARSABLE`."""

    criterion: str
    names: list[str]
    winners: dict[Key, int]


def reader(found: Found, prompts: int) -> dict[str, Any]:
    """Return the data of the reader, as the page's script takes them.

    Args:
        found: what there is.
        prompts: most prompts to show.

    Returns:
        `policies`, their names; `contests`, each with a criterion and the names of who took part; `scale`, the implicit
        reward of a token that gets the full shade; `rows`, one for each prompt and sample, with its responses by policy
        and by contest who won: a number of a name, or -1 for a tie, -2 for no answer; `total`, of all prompts.
    """
    responses = {name: {_key(row): row for row in rows} for name, rows in found.responses.items()}
    compared = [[_column(judged, side, responses) for side in "ab"] for judged in found.comparisons]
    first = dict.fromkeys([*(name for names in compared for name in names), *responses])
    responses = {name: responses[name] for name in first}
    keys = list(dict.fromkeys(key for rows in responses.values() for key in rows))
    shown = set(list(dict.fromkeys(key[:2] for key in keys))[:prompts])
    contests = [*_judged(found.comparisons, compared), *_scored(responses)]
    rows = [_row(key, responses, contests) for key in keys if key[:2] in shown]
    return {
        "policies": list(responses),
        "contests": [{"criterion": one.criterion, "names": one.names} for one in contests],
        "scale": _scale(rows),
        "rows": rows,
        "total": len({key[:2] for key in keys}),
    }


def as_json(data: Mapping[str, Any]) -> str:
    """Return data as JSON that can stand in a `script` element: no text in it can end the element."""
    return json.dumps(data, ensure_ascii=False, allow_nan=False).replace("<", "\\u003c")


def _key(row: Row) -> Key:
    return str(row["id"]), as_text(row["prompt"]), row.get("sample", 0)


def as_text(prompt: Any) -> str:
    """Return a prompt as text; of chat messages, each with its role."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _column(judged: Comparison, side: str, responses: dict[str, dict[Key, Row]]) -> str:
    """Return the name of the policy on a side of a comparison: that of a file with its responses, or a new one."""
    name = judged.win_rates[side]["name"]
    rows = {_key(row): {"response": row[f"response_{side}"]} for row in judged.judgements}
    for column, known in responses.items():
        if column.startswith(name) and all(known.get(key, {}).get("response") == rows[key]["response"] for key in rows):
            return column
    column = f"{name} ({judged.folder})" if name in responses else name
    responses[column] = rows
    return column


def _judged(comparisons: Sequence[Comparison], compared: Sequence[list[str]]) -> Iterator[Contest]:
    """Yield a contest for each criterion of each comparison."""
    for judged, names in zip(comparisons, compared, strict=True):
        for criterion in dict.fromkeys(row["criterion"] for row in judged.judgements):
            rows = [row for row in judged.judgements if row["criterion"] == criterion]
            yield Contest(criterion, names, {_key(row): _winner(row["preference"]) for row in rows})


def _scored(responses: Mapping[str, Mapping[Key, Row]]) -> Iterator[Contest]:
    """Yield the contest by score, where several policies have one."""
    scored = {name: rows for name, rows in responses.items() if any(_score(row) is not None for row in rows.values())}
    if len(scored) > 1:
        keys = dict.fromkeys(key for rows in scored.values() for key in rows)
        scores = {key: [_score(rows.get(key, {})) for rows in scored.values()] for key in keys}
        yield Contest("score", list(scored), {key: _highest(some) for key, some in scores.items() if None not in some})


def _winner(preference: float | None) -> int:
    if preference is None:
        return UNPARSABLE
    return TIE if preference == 0.5 else int(preference < 0.5)


def _highest(scores: Sequence[Any]) -> int:
    best = [i for i, score in enumerate(scores) if score == max(scores)]
    return best[0] if len(best) == 1 else TIE


def _score(row: Row) -> float | None:
    return _number(row.get("score"))


def _number(value: Any) -> float | None:
    """Return a finite number as it is; JSON has no others."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _row(key: Key, responses: Mapping[str, Mapping[Key, Row]], contests: Sequence[Contest]) -> Row:
    identity, prompt, sample = key
    given = {str(i): _response(rows[key]) for i, rows in enumerate(responses.values()) if key in rows}
    won = {str(i): one.winners[key] for i, one in enumerate(contests) if key in one.winners}
    return {"id": identity, "sample": sample, "prompt": prompt, "responses": given, "won": won}


def _response(row: Row) -> Row:
    tokens = [
        [text, round(reward, 4)] for text, reward in row.get("token_rewards") or () if _number(reward) is not None
    ]
    figures = _numbers({name: row.get(name) for name in ("score", "kl", "log_ratio", "tokens")})
    more = {"token_rewards": tokens, "features": _numbers(row.get("features") or {})}
    return {"response": row["response"], **figures, **{name: one for name, one in more.items() if one}}


def _numbers(figures: Mapping[str, Any]) -> Row:
    return {name: value for name, value in figures.items() if _number(value) is not None}


def _scale(rows: Sequence[Row]) -> float:
    """Return the size that nine of ten implicit rewards of tokens do not pass, so that few strong ones hide none."""
    sizes = sorted(
        abs(reward) for row in rows for one in row["responses"].values() for _, reward in one.get("token_rewards", ())
    )
    return sizes[int(0.9 * (len(sizes) - 1))] if sizes else 0.0
