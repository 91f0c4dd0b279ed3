"""What all pictures of a report share: a size that reads well in a narrow window, and one scale of styles."""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

from lit_tr.evaluation.page.groups import Group

SIZE, DPI = (5.4, 4.2), 150
KIND_STYLES = {
    "frozen": {"color": "#444444", "marker": "o"},
    "soft": {"color": "#d95f02", "marker": "s"},
    "hard": {"color": "#1b9e77", "marker": "^"},
    "adaptive": {"color": "#7570b3", "marker": "D"},
}
"""Colour and marker of each kind of reference update, in all pictures."""
OTHERS = [
    {"color": color, "marker": marker}
    for color, marker in zip(("#1f78b4", "#cc79a7", "#e6ab02", "#8c564b"), "vPX*", strict=True)
]
"""Those of other methods, and of further ones of a kind."""
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
"""A style of line for each setting of a method."""


@dataclass(frozen=True)
class Picture:
    """A picture.

    Args:
        name: part of the name of its PNG.
        title: what it shows, in a line.
        caption: how to read it.
        figure: of matplotlib.
    """

    name: str
    title: str
    caption: str
    figure: Any

    def svg(self) -> str:
        """Return the picture as SVG, letters as paths, the same bytes for the same data."""
        import matplotlib

        text = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": self.name}):
            self.figure.savefig(text, format="svg", metadata={"Date": None})
        return text.getvalue()

    def png(self, path: Path) -> None:
        """Write the picture as PNG."""
        self.figure.savefig(path, dpi=DPI)


@dataclass(frozen=True)
class Styles:
    """Colour and marker of each method, and line of each setting, alike in all pictures of a report."""

    methods: Mapping[str, dict[str, Any]]
    settings: Sequence[str]

    @classmethod
    def of(cls, groups: Sequence[Group]) -> "Styles":
        """Return the styles of some groups: the first method of a kind of reference update gets that of the kind."""
        methods: dict[str, dict[str, Any]] = {}
        others = cycle(OTHERS)
        for group in groups:
            if group.method not in methods:
                own = KIND_STYLES.get(group.kind)
                methods[group.method] = next(others) if own is None or own in methods.values() else own
        return cls(methods, list(dict.fromkeys(group.setting for group in groups)))

    def __call__(self, group: Group) -> dict[str, Any]:
        """Return the style of a group, as matplotlib takes it."""
        return {**self.methods[group.method], "linestyle": LINES[self.settings.index(group.setting) % len(LINES)]}

    def handles(self) -> Iterator[Any]:
        """Yield the entries of a legend: the methods, and the settings where there are several."""
        from matplotlib.lines import Line2D

        for name, style in self.methods.items():
            yield Line2D([], [], label=name, **style)
        for setting, line in zip(self.settings, LINES, strict=False) if len(self.settings) > 1 else ():
            yield Line2D([], [], label=setting, color="#555555", linestyle=line)


def new_axes(height: float = SIZE[1]) -> tuple[Any, Any]:
    """Return a figure and its axes."""
    from matplotlib.figure import Figure

    figure: Callable[..., Any] = Figure
    made = figure(figsize=(SIZE[0], height), layout="constrained")
    axes = made.subplots()
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return made, axes


def legend(figure: Any, handles: Any) -> None:
    """Put a legend below the axes, in one column where names are long."""
    handles = [*handles]
    columns = 1 if any(len(one.get_label()) > 36 for one in handles) else 2
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
