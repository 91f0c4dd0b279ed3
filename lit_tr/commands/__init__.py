"""`lit-tr`: its verbs."""

from lit_tr.commands.lightning import LitTRCLI, main

__all__ = ["LitTRCLI", "main"]
