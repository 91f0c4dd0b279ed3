"""torch.compile for parts of a policy: room for their variants, and what runs uncompiled all the same."""

import logging
from collections.abc import Callable
from inspect import signature
from typing import Any

import torch

LIMIT = 64
"""Variants of one function that are compiled.

Torch's own limit is 8. A 4-bit LoRA policy whose adapters are switched passes it: there are passes with and without
gradients, one or two adapters and none, inputs that need gradients and that do not, and layers of two kinds.
"""

_fallen: list[str] = []


def options() -> dict[str, Any]:
    """Return the options of `torch.compile` for a part of a policy."""
    logging.getLogger("torch._dynamo.convert_frame").addFilter(_passes)
    if "recompile_limit" in signature(torch.compile).parameters:
        return {"dynamic": True, "recompile_limit": LIMIT}
    limits: Any = torch.compiler.config  # torch 2.11 has a limit for the process alone
    limits.recompile_limit = max(limits.recompile_limit, LIMIT)
    return {"dynamic": True}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that is compiled when it is first called."""
    return torch.compile(function, **options())


def fallbacks() -> str | None:
    """Return a warning of what has passed the limit since the last call and now runs uncompiled, or None."""
    functions = ", ".join(_fallen)
    _fallen.clear()
    return (
        functions
        and (
            f"{functions}: more than {LIMIT} variants, so the rest runs uncompiled, slower and with more memory. Set "
            "compile: false, or find the cause with TORCH_LOGS=recompiles"
        )
        or None
    )


def _passes(record: logging.LogRecord) -> bool:
    """Keep the name of a function that passed the limit, in place of torch's six lines."""
    if "hit config" not in str(record.msg) or not isinstance(record.args, tuple):
        return True
    _fallen.append(str(record.args[2]))
    return False
