"""What a run prints: its start, its progress and its end."""

from typing import TYPE_CHECKING

from lit_tr.lazy import lazy

if TYPE_CHECKING:
    from lit_tr.console.progress import RunProgress
    from lit_tr.console.summary import RunSummary

__all__ = ["RunProgress", "RunSummary"]

__getattr__, __dir__ = lazy(__name__, {"progress": ["RunProgress"], "summary": ["RunSummary"]})
