"""`lit-tr fit --help`: options in groups, lit_tr's own first, with those of nested classes."""

import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from docstring_parser import parse
from lightning.pytorch import Trainer

from lit_tr import losses, reference, updates
from lit_tr.data.datamodule import PreferenceDataModule
from lit_tr.hparams import parameters
from lit_tr.module import PreferenceModule
from lit_tr.policy.loading import LoRA, PretrainedPolicy

COLUMN = 34
"""Width of the names of options."""
LINKED = {"tokenizer", "mismatched"}
"""Arguments of the data module that come from the model."""


def page(verb: str, run_options: Mapping[str, str]) -> str:
    """Return the help of a verb of LightningCLI.

    Args:
        verb: `fit`, `validate`, `test` or `predict`.
        run_options: help of the options that belong to no class, by name.
    """
    groups = {
        "run": {f"--{name}": said for name, said in run_options.items()},
        "policy": _options("model.policy", PretrainedPolicy, without={"lora"}) | _options("model.policy.lora", LoRA),
        "reference": _kinds("model.reference", reference, reference.__all__, reference.Reference),
        "loss": _kinds("model.loss", losses, losses.__all__, losses.Loss)
        | _kinds("model.loss.divergence", losses, losses.__all__, losses.Divergence),
        "update of the reference": _kinds("update", updates, dir(updates), updates.ReferenceUpdate),
        "model": _options("model", PreferenceModule, without={"policy", "reference", "loss"}),
        "data": _options("data", PreferenceDataModule, without=LINKED),
        "trainer (Lightning's)": _options("trainer", Trainer),
    }
    head = [
        f"usage: lit-tr {verb} --config FILE_OR_NAME [--config OVERLAY ...] [--option value ...]",
        "",
        "An option is a path into the configuration: `--model.loss.beta 0.1` is beta of the loss of the model. A class "
        f"is named alone or by its import path. `lit-tr {verb} --model.loss.help DPO` tells more of a class, `lit-tr "
        f"configs` lists configurations, `lit-tr {verb} --help all` has every option with its type.",
    ]
    return "\n".join([*_wrapped(head), *(line for name, group in groups.items() for line in _group(name, group))])


def _group(name: str, options: dict[str, str]) -> Iterator[str]:
    yield ""
    yield f"{name}:"
    for option, said in options.items():
        yield from _entry(option, said)


def _entry(option: str, said: str) -> list[str]:
    indent = " " * COLUMN
    first = f"  {option} ".ljust(COLUMN)
    if len(first) > COLUMN:
        return [first.rstrip(), *_fill(said, indent, indent)]
    return _fill(said, first, indent) or [first.rstrip()]


def _fill(text: str, first: str, indent: str) -> list[str]:
    width = max(shutil.get_terminal_size().columns, COLUMN + 20)
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False)


def _wrapped(lines: Iterable[str]) -> list[str]:
    width = max(shutil.get_terminal_size().columns, COLUMN + 20)
    return [part for line in lines for part in (textwrap.wrap(line, width) or [""])]


def _options(prefix: str, kind: Any, without: Iterable[str] = ()) -> dict[str, str]:
    """Return what a class says of its arguments, by option, with their defaults."""
    said = {param.arg_name: param.description or "" for param in parse(inspect.getdoc(kind) or "").params}
    said |= {param.arg_name: param.description or "" for param in parse(inspect.getdoc(kind.__init__) or "").params}
    defaults = inspect.signature(kind).parameters
    return {
        f"--{prefix}.{name}": _brief(said.get(name, "")) + _default(defaults[name].default)
        for name in defaults
        if name not in without and name in said
    }


def _brief(text: str) -> str:
    """Return the first sentence of a description, as plain text."""
    flat = re.sub(r":\w+:`~?([^`]*)`", r"\1", " ".join(text.split())).replace("``", "`")
    return re.split(r"(?<=[^.])\.\s+(?=[A-Z`])|\s*Default: ", flat)[0].rstrip(".")


def _default(value: Any) -> str:
    shown = value is not inspect.Parameter.empty and value is not None and isinstance(value, str | int | float | bool)
    return f" [{value}]" if shown else ""


def _kinds(prefix: str, room: Any, names: Iterable[str], base: Any) -> dict[str, str]:
    """Return what the classes of a kind say of themselves, with their arguments."""
    found = (getattr(room, name) for name in names)
    kinds = [one for one in found if inspect.isclass(one) and issubclass(one, base) and not inspect.isabstract(one)]
    return {
        f"--{prefix} {one.__name__}": ": ".join(
            filter(None, [_brief(inspect.getdoc(one) or ""), ", ".join(parameters(one))])
        )
        for one in kinds
    }
