"""The modules of a model, found once: to walk over those of a large model takes as long as to launch its layers."""

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

_found: WeakKeyDictionary[nn.Module, dict[Any, list[nn.Module]]] = WeakKeyDictionary()


def modules_within(model: nn.Module, kind: Any = nn.Module) -> list[Any]:
    """Return the modules of a kind in a model, without itself; one that is added anywhere lets them be found anew."""
    found = _found.setdefault(model, {})
    if kind not in found:
        found[kind] = [one for one in model.modules() if isinstance(one, kind) and one is not model]
    return found[kind]


def _forget(*registered: Any) -> None:
    _found.clear()


register_module_module_registration_hook(_forget)
