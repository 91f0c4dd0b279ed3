"""Win rates as tables of at most 80 columns."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from lit_tr.evaluation.comparison import Comparison
from lit_tr.evaluation.intervals import Interval
from lit_tr.evaluation.win_rates import WinRates

PERCENT = 100.0
LEGEND = """In brackets: 95 % intervals over prompts. Equal length: the win rate if both
responses were equally long, by lit_tr's own fit; read it as a difference
between runs on the same prompts. Discrete: wins, with ties as one half."""


def print_win_rates(comparison: Comparison, rates: Mapping[str, WinRates], console: Console) -> None:
    """Print win rates, what is known of the judge, and what was left out."""
    console.print(f"Win rate of {comparison.a.name} against {comparison.b.name}, in %", soft_wrap=True, markup=False)
    console.print(_table(rates, WON))
    console.print(LEGEND, soft_wrap=True, markup=False)
    judged = {name: one for name, one in rates.items() if one.position_bias is not None}
    if judged or any(one.repeatability is not None for one in rates.values()):
        console.print(f"\nThe judge, {comparison.judge}", soft_wrap=True, markup=False)
        console.print(_table(rates, TRUSTED))
    for line in _remarks(comparison, rates):
        console.print(f"- {line}", soft_wrap=True, markup=False)


def print_difference(found: Mapping[str, Mapping[str, Any]], ours: str, theirs: str, console: Console) -> None:
    """Print the differences of two comparisons' win rates."""
    console.print(
        f"\nWin rate of {ours} less that of {theirs}, in points, on the prompts of both", soft_wrap=True, markup=False
    )
    table = _empty("prompts", "win rate", "equal length")
    for name, one in found.items():
        figures = [figure(one[key], one[f"{key}_interval"], "+.1f") for key in ("win_rate", "length_controlled")]
        table.add_row(name, str(one["prompts"]), *figures)
    console.print(table)
    for name, one in found.items():
        if one["only_a"] or one["only_b"]:
            left_out = f"{one['only_a']} prompts of the first and {one['only_b']} of the second"
            console.print(f"- {name}: {left_out} are left out", soft_wrap=True, markup=False)


def figure(value: float | None, interval: Interval | None, form: str = ".1f", unit: float = PERCENT) -> str:
    """Return a figure with its interval, as `17.2 [15.0, 19.6]`; a dash where there is none.

    Examples:
        >>> figure(0.1719, (0.1503, 0.1963))
        '17.2 [15.0, 19.6]'
        >>> figure(None, None)
        '-'
    """
    if value is None:
        return "-"
    bounds = f" [{interval[0] * unit:{form}}, {interval[1] * unit:{form}}]" if interval else ""
    return f"{value * unit:{form}}{bounds}"


Column = Callable[[WinRates], str]
WON: dict[str, Column] = {
    "prompts": lambda one: str(one.prompts),
    "win rate": lambda one: figure(one.win_rate, one.interval),
    "equal length": lambda one: figure(one.length_controlled, one.length_controlled_interval),
    "discrete": lambda one: figure(one.discrete_win_rate, None),
    "ties": lambda one: figure(one.ties, None),
}
TRUSTED: dict[str, Column] = {
    "position bias": lambda one: figure(one.position_bias, one.position_bias_interval, "+.2f", 1.0),
    "orders agree": lambda one: figure(one.agreement, one.agreement_interval, ".0f"),
    "repeats agree": lambda one: figure(one.repeatability, one.repeatability_interval, ".0f"),
    "unread": lambda one: "+".join(map(str, one.unparsable)),
}


def _table(rates: Mapping[str, WinRates], columns: Mapping[str, Column]) -> Table:
    table = _empty(*columns)
    for name, one in rates.items():
        table.add_row(name, *(of(one) for of in columns.values()))
    return table


def _empty(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("criterion", overflow="fold")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _remarks(comparison: Comparison, rates: Mapping[str, WinRates]) -> Iterator[str]:
    """Yield what a reader of the tables should know."""
    for side, count in ((comparison.a, comparison.only_a), (comparison.b, comparison.only_b)):
        if count:
            yield f"{count} responses are in {side.file} alone and are not judged"
    for name, one in rates.items():
        asked = len(comparison.judgements[name])
        if asked > one.pairs:
            first, second = one.unparsable
            yield (
                f"{name}: {asked - one.pairs} of {asked} pairs have no preference and are left out; unread answers: "
                f"{first} with A shown first, {second} with B first"
            )
        if one.is_biased:
            place = "first" if (one.position_bias or 0) > 0 else "second"
            yield f"{name}: the judge is biased: it prefers what is shown {place}, whatever it is"
