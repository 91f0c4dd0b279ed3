"""The `openai` client, for what speaks to a server: policies that respond and models that judge."""

from typing import Any

from lit_tr.errors import UserError

REFUSED = (400, 413, 422)
"""Status codes by which a server refuses one request and may take others."""


def client(what: str, url: str | None, key: str | None, retries: int, timeout: float) -> Any:
    """Return a client of the `openai` package.

    Args:
        what: needs it, for the message where the package is missing.
        url: address up to `/v1`; None takes OPENAI_BASE_URL, or OpenAI's own.
        key: the key; a server of one's own asks for none, and the client insists on one.
        retries: how often a request is tried again.
        timeout: most seconds of a request.

    Raises:
        UserError: the package is not installed.
    """
    try:
        from openai import OpenAI
    except ImportError as error:
        raise UserError(f"{what} needs the package openai: pip install 'lit-tr[evaluation]'") from error
    return OpenAI(base_url=url, api_key=key or "none", max_retries=retries, timeout=timeout)
