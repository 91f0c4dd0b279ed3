"""What to write for rows of no known format: the `columns` that are likely meant."""

from collections.abc import Iterable
from difflib import get_close_matches

MAPPED = (
    ("prompt", "chosen", "rejected"),
    ("prompt", "completion", "label"),
    ("prompt", "responses", "ranks"),
    ("prompt", "completion"),
    ("chosen", "rejected"),
)
"""What the columns of other rows are mapped to."""

SYNONYMS = {
    "prompt": (
        "question",
        "instruction",
        "query",
        "input",
        "context",
        "history",
        "post",
        "problem",
        "user",
        "messages",
        "conversations",
        "dialogue",
    ),
    "chosen": ("accepted", "preferred", "winner", "win", "better", "best", "positive", "pos", "good", "response_j"),
    "rejected": ("dispreferred", "loser", "lose", "worse", "worst", "negative", "neg", "bad", "response_k", "unchosen"),
    "completion": ("response", "answer", "output", "generation", "reply", "assistant", "text"),
    "label": ("kto_tag", "desirable", "is_good", "liked", "thumbs_up", "feedback"),
    "responses": ("answers", "outputs", "generations", "candidates", "completions"),
    "ranks": ("rank", "ranking", "rankings", "order"),
}


def hint(columns: list[str]) -> str:
    """Return what is missing, and the line that maps the columns to those of a format."""
    likely = {names: _mapping(columns, names) for names in MAPPED}
    names, found = max(likely.items(), key=lambda one: (len(one[1]) / len(one[0]), len(one[1])))
    said = f"the columns are {', '.join(columns) or 'none'}"
    if not found:
        return f"{said}; `lit-tr data formats` shows what is known, and `format` takes a function of your own"
    missing = [name for name in names if name not in found]
    renamed = ", ".join(f"{name}: {column}" for name, column in found.items() if name != column)
    line = f"; `columns: {{{renamed}}}` names them" if renamed else ""
    lacks = f", and {' and '.join(map(repr, missing))} is missing" if missing else ""
    return f"{said}; closest is {'+'.join(names)}{lacks}{line}"


def _mapping(columns: list[str], names: tuple[str, ...]) -> dict[str, str]:
    """Return the column that is likely meant by each name, where there is one."""
    free, found = list(columns), {}
    for name in names:
        column = name if name in free else likely(free, name)
        if column is not None:
            found[name] = column
            free.remove(column)
    return found


def likely(columns: Iterable[str], name: str) -> str | None:
    """Return the column that is likely meant by a name, if there is one."""
    lower = {column.lower(): column for column in columns}
    for meant in (name, *SYNONYMS[name]):
        close = get_close_matches(meant, lower, 1, 0.8) or [column for column in lower if column.startswith(meant)]
        if close:
            return lower[close[0]]
    return None
