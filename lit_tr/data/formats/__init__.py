"""Formats of preference rows: raw row -> Example, or a list of them."""

from lit_tr.data.formats.conversion import Chat, Conversion
from lit_tr.data.formats.detect import detect

__all__ = ["Chat", "Conversion", "detect"]
