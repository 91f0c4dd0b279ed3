"""Messages for options that a parser refuses: what is wrong, the nearest names, and the names that there are."""

import argparse
import inspect
import re
import sys
from argparse import ArgumentError
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pydoc import locate
from typing import Any, NoReturn, get_args, get_type_hints

from jsonargparse import ArgumentParser, Namespace

from lit_tr.hparams import parameters

KEY = r'(?:Parser key|Key) "([^"]+)":'
CLASS_PATH = r"(?:given class_path |Namespace\(class_path=)'([\w.]+)'"
FUNCTION = r"Type collections\.abc\.Callable.* expects a function"
"""What is said of a class that is no function, where a function would do as well."""
MOST_NAMES = 24
"""Names that are listed; of more the nearest ones alone are given."""


class PlainParser(argparse.ArgumentParser):
    """argparse's, whose errors know the options too, and are raised: `lit-tr` prints them in one message."""

    def error(self, message: str) -> NoReturn:
        """Raise an error."""
        error = ArgumentError(None, message)
        error.options = option_names(self.format_help())  # type: ignore[attr-defined]
        raise error


def option_names(page: str) -> list[str]:
    """Return the options that a page of help has an entry of."""
    return re.findall(r"^  (?:-\w, )?(--[\w.-]+)", page, re.MULTILINE)


def parsed(parser: ArgumentParser, args: list[str]) -> Namespace:
    """Return the options of a verb; an error knows which ones there are, so that its message can name the nearest."""
    try:
        return parser.parse_args(args)
    except ArgumentError as error:
        error.options = option_names(parser.format_help())  # type: ignore[attr-defined]
        raise


def explain(text: str, options: Iterable[str] = ()) -> str:
    """Return jsonargparse's message about an option in a few lines: the option, what is wrong, what there is.

    Args:
        text: the message.
        options: the options of the verb.
    """
    option = "--" + ".".join(re.findall(KEY, text)) if re.search(KEY, text) else ""
    for pattern, said in SAID.items():
        if found := re.search(pattern, text, re.DOTALL):
            return said(option, found, text, list(options))
    return f"{option}: {_reasons(text)}" if option else _reasons(text)


def _reasons(text: str) -> str:
    lines = (line.strip(" -") for line in re.sub(KEY, "\n", text).splitlines())
    where = (
        r"Does not validate|Subtypes: |Errors:|Given value|Expected a <class .NoneType.>|Problem with given class_path"
    )
    said = [line for line in lines if line and not re.match(where, line)]
    return "\n  ".join([line for line in said if not re.match(FUNCTION, line)] or said)


def _unknown(option: str, found: re.Match[str], text: str, options: list[str]) -> str:
    """Say that there is no such option, of the verb or of a class."""
    name = ".".join(filter(None, found.groups())).lstrip("-").partition("=")[0]
    paths = re.findall(CLASS_PATH, text[: found.end()] + text[found.end() :].partition("\n")[0])
    if "arguments: " in found[0] and not found[1].startswith("-"):
        config = f"; a configuration is given by --config {found[1]}" if "--config" in options else ""
        return f"{found[1]} belongs to no option{config}"
    if not paths:
        return f"there is no option --{name}{nearest(f'--{name}', options)}"
    kind: Any = locate(paths[-1])
    names = sorted(parameters(kind))
    head = f"{option}.{name}: {kind.__name__} has no argument {name.partition('.')[0]!r}"
    return head + nearest(name.partition(".")[0], names)


def _no_class(option: str, found: re.Match[str], text: str, options: list[str]) -> str:
    """Say that there is no such class."""
    kind = _expected(text[: found.start()])
    names = sorted({one.__name__ for one in _subclasses(kind)}) if kind else []
    head = f"{option}: there is no {found[1]}" + (f" among {kind.__name__}" if kind else "")
    module, _, name = found[1].rpartition(".")
    near = nearest(name, names or ([one for one in _members(module) if one[0].isupper()] if module else []))
    return f"{head}{near}\n  a class of your own is named by its import path, such as mine.Name"


def _members(module: str) -> list[str]:
    """Return the functions, classes and modules of a module, without importing those that it imports when asked."""
    held = {one: inspect.getattr_static(locate(module), one, type) for one in dir(locate(module)) if one[0] != "_"}
    return [name for name, one in held.items() if callable(one) or inspect.ismodule(one)]


def _expected(text: str) -> Any:
    """Return the class that an option takes a subclass of: as the message names it, or by its parent's annotation."""
    keys, paths = re.findall(KEY, text), re.findall(CLASS_PATH, text)
    inner = text[text.rindex(f'"{keys[-1]}":') :] if keys else text
    if subtypes := re.search(r"Subtypes: \[(.*?)\]\n", inner):
        named = map(_imported, re.findall(r"[a-z]\w*(?:\.\w+)+", subtypes[1]))
        return next((one for one in named if inspect.isclass(one) and one.__module__ != "collections.abc"), None)
    if not paths:
        return None
    annotation = get_type_hints(locate(paths[-1]).__init__).get(keys[-1])  # type: ignore[misc]
    return next((one for one in (annotation, *get_args(annotation)) if inspect.isclass(one)), None)


def _imported(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)  # pydoc.locate does not find torch.optim.optimizer


def _subclasses(kind: Any) -> Iterator[type]:
    for one in kind.__subclasses__():
        yield from _subclasses(one)
        if not inspect.isabstract(one) and not one.__name__.startswith("_"):
            yield one


def _one_of(option: str, found: re.Match[str], text: str, options: list[str]) -> str:
    """Say which values there are."""
    values = re.findall(r"'([^']+)'", " ".join(re.findall(r"typing\.Literal\[([^\]]*)\]", text)))
    return f"{option}: there is no {_given(text)!r}{nearest(_given(text), values)}"


def _no_function(option: str, found: re.Match[str], text: str, options: list[str]) -> str:
    """Say that there is no such function."""
    near = nearest(found[3], _members(found[2]), f"{found[2]}.") if found[2] else ""
    own = "a function or class of your own is named by its import path, such as mine.name"
    return f"{option}: {found[1]}{near}\n  {own}"


def _of_type(option: str, found: re.Match[str], text: str, options: list[str]) -> str:
    kinds = [one for one in re.findall(r"Expected a <class '(\w+)'>", text) if one != "NoneType"]
    return f"{option}: expected {' or '.join(dict.fromkeys(kinds))}, not {_given(text)!r}"


def _given(text: str) -> str:
    """Return the innermost value that was given."""
    return re.findall(r"(?:Given value|Got value): (.*)", text)[0].rstrip(".")


def _missing(option: str, found: re.Match[str], text: str, options: list[str]) -> str:
    names = [re.sub(r"^(fit|validate|test|predict)\.", "", one.strip()) for one in found[1].split(",")]
    if not option and "model" in names:
        return (
            "give a configuration: --config FILE, or --config NAME of one that ships with lit_tr, such as quickstart\n"
            "  `lit-tr configs` lists them"
        )
    if not option and names == ["data.train"]:
        return "--data.train must be given: a file of preferences\n  `lit-tr data formats` lists its formats"
    return f"{option + ': ' if option else ''}{', '.join(names)} must be given"


def _not_installed(option: str, found: re.Match[str], text: str, options: list[str]) -> str:
    return f"{option + ': ' if option else ''}it needs a package that is not installed: pip install '{found[1]}'"


def nearest(name: str, names: list[str], prefix: str = "") -> str:
    """Return lines with the nearest of some names, after a prefix, and with all of them if they are few."""
    names = list(dict.fromkeys(names))
    near = [prefix + one for one in get_close_matches(name, names, n=3, cutoff=0.5)]
    said = f"\n  did you mean {' or '.join(near)}?" if near else ""
    return said + (f"\n  there are {', '.join(names)}" if 0 < len(names) <= MOST_NAMES else "")


SAID = {
    r"Requirement '([^']+)' not met": _not_installed,
    r"unrecognized arguments: (\S+)": _unknown,
    r"Option '([^']+)' is not accepted": _unknown,
    r"Subcommand '\w+' does not accept option '([^']+)'": _unknown,
    r"Group '([\w.]+)' does not accept option '([^']+)'": _unknown,
    r"Problem with given class_path '([\w.]+)':\s+(?:module '[^']+' has no attribute|No module named)": _no_class,
    r"Expected a dot import path string: (\S+)": _no_class,
    r"Expected a typing\.Literal": _one_of,
    r"the following arguments are required: ([^\n]+?)(?:\. Got value|\n|$)": _missing,
    r"a callable class: (module '([^']+)' has no attribute '(\w+)'|No module named [^\n]+?)(?:\. Got|\n)": _no_function,
    r"Expected a <class '(?!NoneType)": _of_type,
}
"""What a message is about, by its text, and who puts it into words."""
