"""What a run prints: its start, its progress and its end."""

from lit_tr.console.progress import RunProgress
from lit_tr.console.summary import RunSummary

__all__ = ["RunProgress", "RunSummary"]
