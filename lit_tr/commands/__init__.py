"""`lit-tr`: one verb per file."""

from typing import TYPE_CHECKING

from lit_tr.commands.main import main
from lit_tr.lazy import lazy

if TYPE_CHECKING:
    from lit_tr.commands.fit import LitTRCLI

__all__ = ["LitTRCLI", "main"]

__getattr__, __dir__ = lazy(__name__, {"fit": ["LitTRCLI"], "main": ["main"]})
