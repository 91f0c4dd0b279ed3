"""A language model of about 1M parameters that ships with the package; `lit_tr/embedded/build.py` makes it."""

from pathlib import Path

TINY = "embedded:tiny"
"""What to give as the path of a model or tokenizer to get the one that ships with the package."""


def resolve(path: str) -> str:
    """Return the folder of the embedded model for `TINY`, and any other path as it is."""
    return str(Path(__file__).parent / "tiny") if path == TINY else path
