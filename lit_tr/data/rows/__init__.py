"""Where rows come from."""

from lit_tr.data.rows.matching import DistributionMatching
from lit_tr.data.rows.memory import Objects, as_source
from lit_tr.data.rows.mixture import Mixture
from lit_tr.data.rows.path import Rows
from lit_tr.data.rows.source import Cursor, Record, Source
from lit_tr.data.rows.without import Without

__all__ = ["Cursor", "DistributionMatching", "Mixture", "Objects", "Record", "Rows", "Source", "Without", "as_source"]
