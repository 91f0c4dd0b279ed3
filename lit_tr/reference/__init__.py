"""How one language model follows another: what a reference is, and its kinds."""

from lit_tr.reference.adapter import AdapterReference
from lit_tr.reference.base import Reference
from lit_tr.reference.copied import CopyReference
from lit_tr.reference.frozen import FrozenReference
from lit_tr.reference.window import WindowReference

__all__ = ["AdapterReference", "CopyReference", "FrozenReference", "Reference", "WindowReference"]
