"""A language model of about 1M parameters that ships with the package; `lit_tr/embedded/build.py` makes it."""

from pathlib import Path

TINY = "embedded:tiny"
"""Path of the model and tokenizer that ship with the package."""


def resolve(path: str) -> str:
    """Return the folder of the embedded model for `TINY`, and other paths unchanged."""
    return str(Path(__file__).parent / "tiny") if path == TINY else path
