"""Two policies compared: judgements of their pairs, win rates by criterion, and the files of both."""

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lit_tr.errors import UserError, explained
from lit_tr.evaluation.alpaca_eval import read_annotations
from lit_tr.evaluation.judgements import Judgement, join, judge_all, read, write
from lit_tr.evaluation.judges.base import Judge
from lit_tr.evaluation.responses import Response
from lit_tr.evaluation.responses import read as read_responses
from lit_tr.evaluation.win_rates import WinRates, difference, win_rates

JUDGEMENTS, WIN_RATES = "judgements.jsonl", "win_rates.json"


@dataclass(frozen=True)
class Side:
    """One of the two policies: its name, and the file that its responses come from."""

    name: str
    file: str


@dataclass
class Comparison:
    """Judgements of two policies' responses, by criterion.

    Args:
        a: the policy whose win rates are given.
        b: the policy it is compared with.
        judgements: by criterion.
        repeated: those of pairs that were judged once more, by criterion.
        only_a: responses that only A's file has; they are not judged.
        only_b: responses that only B's file has.
    """

    a: Side
    b: Side
    judgements: Mapping[str, Sequence[Judgement]]
    repeated: Mapping[str, Sequence[Judgement]] = field(default_factory=dict)
    only_a: int = 0
    only_b: int = 0

    @property
    def judge(self) -> str:
        """Name of the judge."""
        return ", ".join(sorted({one.judge for those in self.judgements.values() for one in those}))

    def win_rates(self) -> dict[str, WinRates]:
        """Return the figures of each criterion."""
        return {name: win_rates(those, self.repeated.get(name, ())) for name, those in self.judgements.items()}

    def less(self, other: "Comparison") -> dict[str, dict[str, Any]]:
        """Return by criterion the win rates less those of another comparison, with paired intervals.

        Raises:
            UserError: no criterion, or no prompt, is in both.
        """
        shared = [name for name in self.judgements if name in other.judgements]
        if not shared:
            raise UserError(f"no criterion is in both: {', '.join(self.judgements)}; {', '.join(other.judgements)}")
        return {name: difference(self.judgements[name], other.judgements[name]) for name in shared}


def compare(a: str | Path, b: str | Path, judges: Mapping[str, Judge], repeat: int = 0) -> Comparison:
    """Judge the responses of two policies to the same prompts.

    Args:
        a: file of the first policy's responses.
        b: file of the second's.
        judges: by criterion.
        repeat: how many pairs, drawn with a fixed seed, to judge twice.

    Raises:
        UserError: a file cannot be read, or nothing is in both.
    """
    sides = [read_responses(a), read_responses(b)]
    joined = join(*sides)
    drawn = random.Random(0).sample(joined.pairs, min(repeat, len(joined.pairs)))
    judged = {name: judge_all(judge, joined.pairs, name) for name, judge in judges.items()}
    repeated = {name: judge_all(_again(judge), drawn, name) for name, judge in judges.items() if drawn}
    names = [_name(path, rows) for path, rows in zip((a, b), sides, strict=True)]
    return Comparison(Side(names[0], str(a)), Side(names[1], str(b)), judged, repeated, joined.only_a, joined.only_b)


def _again(judge: Any) -> Judge:
    """Return a judge that does not take answers from its cache; one without `again` has none."""
    return judge.again() if hasattr(judge, "again") else judge


def _name(path: str | Path, rows: Sequence[Response]) -> str:
    names = {one.policy for one in rows if one.policy}
    return names.pop() if len(names) == 1 else Path(path).stem


def of_annotations(path: str | Path) -> Comparison:
    """Return the comparison in a file of AlpacaEval's annotations: of the model with the baseline."""
    found = read_annotations(path)
    return Comparison(Side(found.model, str(path)), Side(found.baseline, str(path)), {"overall": found.judgements})


def of_judgements(path: str | Path) -> Comparison:
    """Return the comparison that `save` wrote: a folder, or its file of judgements alone."""
    by_criterion: dict[str, list[Judgement]] = {}
    for one in read(path):
        by_criterion.setdefault(one.criterion, []).append(one)
    beside = (Path(path) if Path(path).is_dir() else Path(path).parent) / WIN_RATES
    told = json.loads(beside.read_text()) if beside.exists() else {}
    a, b = (Side(**told.get(side, {"name": side.upper(), "file": str(path)})) for side in ("a", "b"))
    return Comparison(a, b, by_criterion)


def save(comparison: Comparison, told: Mapping[str, Any], folder: str | Path) -> None:
    """Write `judgements.jsonl` and `win_rates.json` into a folder.

    Args:
        comparison: whose judgements are written.
        told: what `as_json` returns, and more if you like.
        folder: made if there is none.
    """
    folder = Path(folder)
    with explained(f"{folder}: it cannot be written", OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write(folder / JUDGEMENTS, [one for those in comparison.judgements.values() for one in those])
        (folder / WIN_RATES).write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n")


def as_json(comparison: Comparison, rates: Mapping[str, WinRates]) -> dict[str, Any]:
    """Return names and figures as plain data; shares are in [0, 1]."""
    return {
        "a": asdict(comparison.a),
        "b": asdict(comparison.b),
        "judge": comparison.judge,
        "only_a": comparison.only_a,
        "only_b": comparison.only_b,
        "criteria": {name: asdict(one) for name, one in rates.items()},
    }
