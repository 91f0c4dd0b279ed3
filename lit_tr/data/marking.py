"""Examples as text in which scored tokens and special tokens are marked, whatever the text has in it."""

from itertools import groupby
from typing import Any

from rich.text import Text

OPEN, BAR, CLOSE = "⟦", "¦", "⟧"
SPECIAL = "⟪", "⟫"
ESCAPE = "⟨", "⟩"
MARKS = {OPEN, BAR, CLOSE, *SPECIAL, *ESCAPE}
LEGEND = (
    f"{OPEN}scored{BAR} tokens{CLOSE}, the rest is context; {'special token'.join(SPECIAL)}; {'U+001B'.join(ESCAPE)} "
    "a character that cannot be shown, or is one of these marks"
)
CONTEXT = 4
"""Tokens before one that are decoded with it, for its spaces; and the most that make one character."""
PARTIAL = "\ufffd"
"""What stands for a character of which bytes are missing."""


def marked(before: list[int], ids: list[int], scored: list[bool], tokenizer: Any) -> Text:
    """Return tokens as text, with marks as `LEGEND` explains them.

    No two sequences of texts give the same: a mark that is part of the text is written as its number.

    Args:
        before: the ids before them.
        ids: the ids to show.
        scored: which of them are scored.
        tokenizer: their tokenizer.
    """
    text = Text()
    for is_scored, group in groupby(zip(ids, scored, strict=True), key=lambda pair: pair[1]):
        some = [token for token, _ in group]
        parts = _parts(before, some, tokenizer)
        before = (before + some)[-CONTEXT:]
        text.append(f"{OPEN}{BAR.join(parts)}{CLOSE}" if is_scored else "".join(parts), "underline" * is_scored)
    text.highlight_regex(f"{SPECIAL[0]}.*?{SPECIAL[1]}", "bold magenta")
    text.highlight_regex(f"[{OPEN}{BAR}{CLOSE}]", "green")
    return text


def _parts(before: list[int], ids: list[int], tokenizer: Any) -> list[str]:
    """Return the text of each token; of all those together that make one character."""
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    parts: list[str] = []
    held: list[int] = []
    for token, following in zip(ids, [*ids[1:], None], strict=True):
        held.append(token)
        if token in special:
            parts.append(escaped(tokenizer.convert_ids_to_tokens(token)).join(SPECIAL))
        else:
            text = _behind(before, held, tokenizer)
            if text.endswith(PARTIAL) and len(held) < CONTEXT and following is not None and following not in special:
                continue
            parts.append(escaped(text))
        before, held = (before + held)[-CONTEXT:], []
    return parts


def _behind(before: list[int], ids: list[int], tokenizer: Any) -> str:
    """Return the text of tokens after others: some tokenizers leave out the space before the first token."""
    whole, start = (tokenizer.decode(some, clean_up_tokenization_spaces=False) for some in (before + ids, before))
    return whole[len(start) :]


def escaped(text: str) -> str:
    """Return a text with its marks and unprintable characters as their numbers."""
    return "".join(c if (c.isprintable() or c in "\n\t") and c not in MARKS else _number(c) for c in text)


def _number(character: str) -> str:
    return f"U+{ord(character):04X}".join(ESCAPE)
