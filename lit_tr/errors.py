"""Errors that a user sees."""

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """A mistake in a file, a row or an argument that the user gave.

    The message names it and says what to do; `lit-tr` prints the message without a traceback.
    """


@contextmanager
def explained(message: str, *kinds: type[Exception]) -> Iterator[None]:
    """Raise errors of some kinds as a `UserError`: the message, and theirs in brackets."""
    try:
        yield
    except kinds as error:
        raise UserError(f"{message} ({error})") from error


class DriftError(RuntimeError):
    """Ranks that must hold the same weights do not."""


class BadRowError(UserError):
    """A row of a data source that cannot be trained on.

    Args:
        reason: what is wrong, in the same words for every such row, so that rows can be counted by reason.
        detail: what is particular to this row.
        tokens: tokens of the prompt with the longer response, of a row that is too long.
    """

    def __init__(self, reason: str, detail: str = "", tokens: int | None = None) -> None:
        super().__init__(f"{reason} ({detail})" if detail else reason)
        self.reason, self.detail, self.tokens = reason, detail, tokens
