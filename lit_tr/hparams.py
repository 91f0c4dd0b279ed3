"""The arguments of a module as plain data, saved in a checkpoint, to instantiate the module again.

References, losses and other arguments of a module keep their own arguments as attributes of the same names; so a
checkpoint can save them, however the module was made.
"""

import inspect
import numbers
from argparse import ArgumentError
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch.core import saving
from torch import nn

from lit_tr.errors import UserError, explained

INSTANTIATOR = "lit_tr.hparams.instantiate"
vars(saving).get("_ALLOWED_INSTANTIATORS", set()).add(INSTANTIATOR)  # where Lightning (2.6.6) lists such functions
UNSAVED_KEY = "_unsaved"
"""Key of the reason why an argument could not be saved."""
ADAPTER_KEY = "_adapter"
"""Key of PEFT's configuration of the adapter of a policy in memory, which its weights need."""
TRAINING_ONLY = ("optimizer", "lr_scheduler")
"""Arguments that a checkpoint needs for training only."""
MODULE_ARGUMENTS = ("reference", "loss")
"""Arguments that may be torch modules, saved by class; any other torch module is a model in memory."""


class _NotPlain(Exception):
    pass


def describe(module: nn.Module) -> dict[str, Any]:
    """Return the arguments of a module as plain data; to be called in its `__init__`.

    Arguments of subclasses are among them. An optimizer or a schedule that cannot be saved, such as a lambda, is left
    out; a policy in memory is None, with the configuration of its adapter.
    """
    frame = inspect.currentframe()
    given = _arguments(module, frame.f_back if frame else None)
    described = {name: _described(name, value) for name, value in given.items()}
    kept = {name: value for name, value in described.items() if not (name in TRAINING_ONLY and is_unsaved(value))}
    made = _described("", type(module))  # a class within a function cannot be imported
    named = {} if is_unsaved(made) else {"_class_path": made["class_path"]}
    return {**named, **kept, **_adapter(given.get("policy")), "_instantiator": INSTANTIATOR}


def arguments(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration of a module, `class_path` and `init_args`, as saved in a checkpoint."""
    return {"_class_path": model["class_path"], **(model.get("init_args") or {}), **(model.get("dict_kwargs") or {})}


def instantiate(module_class: type, given: dict[str, Any]) -> Any:
    """Make a module from its saved arguments; `load_from_checkpoint` calls it.

    Args:
        module_class: the class.
        given: plain data as `describe` returns it, and objects that replace some of it.

    Raises:
        UserError: an argument that the class needs was not saved.
    """
    names = parameters(module_class)
    wanted = {name: value for name, value in given.items() if name in names}
    objects = {name: value for name, value in wanted.items() if not _is_plain(value)}
    plain = {name: value for name, value in wanted.items() if name not in objects}
    for name, value in plain.items():
        check_kept(name, value)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(module_class, "module", fail_untyped=False, skip={*objects}, instantiate=False)
    with explained("the checkpoint's hyper-parameters cannot be read", ArgumentError):
        made = parser.instantiate(parser.parse_object({"module": plain})).module
    return module_class(**objects, **vars(made))


def check_kept(name: str, value: Any) -> None:
    """Raise a `UserError` if an argument was not saved."""
    if name == "policy" and value is None:
        raise UserError(
            "the checkpoint names no policy, for it was a model in memory: give it to load_from_checkpoint(..., "
            "policy=model), or its path to `lit-tr export --base`"
        )
    if is_unsaved(value):
        raise UserError(
            f"the checkpoint does not say its {name}: {value[UNSAVED_KEY]}; give {name}=... to load_from_checkpoint"
        )


def parameters(made: type) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a class, with those of its bases if it passes `**kwargs` on."""
    found: dict[str, inspect.Parameter] = {}
    for one in (base for base in made.__mro__ if "__init__" in vars(base)):
        own = [*inspect.signature(vars(one)["__init__"]).parameters.values()][1:]
        named = {p.name: p for p in own if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
        found = {**named, **found}
        if not any(p.kind == p.VAR_KEYWORD for p in own):
            break
    return found


def _arguments(module: nn.Module, frame: FrameType | None) -> dict[str, Any]:
    """Return the arguments of the `__init__` of a module and of its subclasses, by name."""
    given: dict[str, Any] = {}
    while frame is not None and frame.f_code.co_name == "__init__":
        info = inspect.getargvalues(frame)
        if not info.args or info.locals[info.args[0]] is not module:
            break
        given |= {name: info.locals[name] for name in info.args[1:]}
        given |= info.locals[info.keywords] if info.keywords else {}
        frame = frame.f_back
    return given


def _adapter(policy: Any) -> dict[str, Any]:
    configs = getattr(policy, "peft_config", None)
    return {ADAPTER_KEY: _plain(configs[policy.active_adapter].to_dict())} if isinstance(configs, Mapping) else {}


def _described(name: str, value: Any) -> Any:
    if isinstance(value, nn.Module) and name not in MODULE_ARGUMENTS:
        return None if name == "policy" else {UNSAVED_KEY: "it was a model in memory"}
    try:
        return _object(value) if isinstance(value, nn.Module) else _plain(value)
    except _NotPlain as error:
        return {UNSAVED_KEY: str(error)}


def _plain(value: Any) -> Any:
    """Return a value as jsonargparse parses it from YAML."""
    if value is None or isinstance(value, bool):
        return value
    for kind, plain in ((Enum, lambda one: one.name), (str, str), (Path, str)):
        if isinstance(value, kind):
            return plain(value)
    if isinstance(value, numbers.Real):  # NumPy numbers too, which `weights_only` refuses
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, partial):
        if value.args:
            raise _NotPlain("a functools.partial with positional arguments cannot be saved")
        return {"class_path": _path(value.func), "init_args": _plain(value.keywords)}
    if isinstance(value, type):
        return {"class_path": _path(value)}
    return _path(value) if inspect.isroutine(value) else _object(value)


def _object(value: Any) -> dict[str, Any]:
    """Return an object by its class and arguments, a plain dataclass by its fields."""
    made = type(value)
    if is_dataclass(made) and all(is_dataclass(base) for base in made.__mro__[:-1]):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(made) if one.init}
    init_args = {}
    for name in parameters(made):
        if not hasattr(value, name) or isinstance(getattr(value, name), nn.Module):
            raise _NotPlain(f"{made.__name__} does not keep its argument {name} as self.{name}")
        init_args[name] = _plain(getattr(value, name))
    return {"class_path": _path(made), "init_args": init_args}


def _path(value: Any) -> str:
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "<")
    if not module or "<" in name or inspect.ismethod(value):
        raise _NotPlain(f"{value} is not found by an import")
    return f"{module}.{name}"


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, value.values()))
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def is_unsaved(value: Any) -> bool:
    """Whether an argument could not be saved."""
    return isinstance(value, Mapping) and UNSAVED_KEY in value
