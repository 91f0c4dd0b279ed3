"""`lit-tr`: one verb per file."""

from lit_tr.commands.fit import LitTRCLI
from lit_tr.commands.main import main

__all__ = ["LitTRCLI", "main"]
