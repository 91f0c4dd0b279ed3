"""All kinds of references: whoever names one knows them all, so that a config may name any by its class alone."""

from lit_tr.policy.loading import PretrainedPolicy
from lit_tr.reference.adapter import AdapterReference
from lit_tr.reference.base import Reference
from lit_tr.reference.copied import CopyReference
from lit_tr.reference.frozen import FrozenReference
from lit_tr.reference.pretrained import PretrainedReference
from lit_tr.reference.window import WindowReference

__all__ = [
    "AdapterReference",
    "CopyReference",
    "FrozenReference",
    "PretrainedReference",
    "Reference",
    "WindowReference",
    "alternatives",
]


def alternatives(source: PretrainedPolicy, soft: bool) -> dict[str, Reference]:
    """Return the references that work with a policy, and with `soft` updates, by a short description."""
    if source.lora or source.adapter:
        return {"Frozen": FrozenReference(), "Adapter": AdapterReference()}
    kinds: dict[str, Reference] = {"Frozen": FrozenReference(), "Copy": CopyReference()}
    if source.dtype != "bfloat16":
        kinds["Copy in bfloat16"] = CopyReference(dtype="bfloat16")
    elif soft:
        kinds |= {"Copy, master weights": CopyReference("master"), "Copy, plain average": CopyReference("plain")}
    if soft:
        return kinds
    return kinds | {"Copy in nf4": CopyReference(dtype="nf4"), "Window": WindowReference()}
