"""References: how one language model follows another."""

from typing import TYPE_CHECKING

from lit_tr.lazy import lazy

if TYPE_CHECKING:
    from lit_tr.reference.kinds import (
        AdapterReference,
        CopyReference,
        FrozenReference,
        PretrainedReference,
        Reference,
        WindowReference,
        alternatives,
    )

__all__ = [
    "AdapterReference",
    "CopyReference",
    "FrozenReference",
    "PretrainedReference",
    "Reference",
    "WindowReference",
    "alternatives",
]

__getattr__, __dir__ = lazy(__name__, {"kinds": __all__})
