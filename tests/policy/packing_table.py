"""Which causal model types are packed: `python -m tests.policy.packing_table` writes the table of docs/packing.md."""

import re
from pathlib import Path

from lit_tr.policy.probe import why_not_packed
from tests.policy.causal_types import AT_RANDOM, NOT_BUILT, TYPES, tiny_model

PAGE = Path(__file__).parents[2] / "docs" / "packing.md"
HEAD = "| Model type | Layout | Why |\n| --- | --- | --- |\n"


def row(kind: str, reason: str | None) -> str:
    """Return the line of a type; the nats of a reason are those of random weights, and are left out."""
    return f"| {kind} | {'padded' if reason else 'packed'} | {re.sub(r',? by [0-9][^;]*', '', reason or '')} |\n"


NOT_TRIED = NOT_BUILT | AT_RANDOM


def row_of_not_tried(kind: str) -> str:
    """Return the line of a type that is not tried."""
    return f"| {kind} | not tried | {NOT_TRIED[kind]} |\n"


def main() -> None:
    """Write the table."""
    text = PAGE.read_text().partition(HEAD)[0]
    rows = (
        row_of_not_tried(kind) if kind in NOT_TRIED else row(kind, why_not_packed(tiny_model(kind))) for kind in TYPES
    )
    PAGE.write_text(text + HEAD + "".join(rows))


if __name__ == "__main__":
    main()
