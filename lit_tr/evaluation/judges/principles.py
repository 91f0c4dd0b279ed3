"""A judge that rates by a list of principles, each on its own."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lit_tr.errors import UserError, explained
from lit_tr.evaluation.judges.llm import LLMScorer
from lit_tr.evaluation.judges.templates import Criterion
from lit_tr.rewards.base import Candidate, Features, FunctionScorer, Scorer

MEASURE = "The measure is how far the answer follows this principle: {}"
Rating = Callable[[str, str, str], float]
"""From a prompt, a response and the text of a principle to a rating."""


class Principle(NamedTuple):
    """A principle or rubric: its name in files and tables, its text, and its weight."""

    name: str
    text: str
    weight: float = 1.0


@dataclass
class Principles:
    """The weighted mean of a judge's ratings by several principles, a question each.

    Principles that can be changed in the place of a reward that must be trained again are SALMON's (Sun et al. 2023,
    arXiv 2310.05910), rubrics those of OpenRubrics (Liu et al. 2025, arXiv 2510.07743); here no model is trained for
    them. Answers of a language model are cached, so other weights ask nothing again.

    A response has no score where a rating is missing that weighs.

    Args:
        principles: a file. In one of YAML each name has a text, or a mapping with `text` and `weight`; in any other
            each line is a principle and its own name, but for empty lines and those that begin with `#`.
        judge: rates by one principle: a language model, or a function `(prompt, response, principle) -> rating`.
        weights: in the place of those of the file, by name; others stay. Negative ones count against a response.

    Raises:
        UserError: the file cannot be read or has no principles, a weight is of none of them, or all are 0.
    """

    principles: str
    judge: LLMScorer | Rating
    weights: Mapping[str, float] | None = None
    _found: Sequence[Principle] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._found, given = read_principles(self.principles), self.weights or {}
        if unknown := [name for name in given if name not in {one.name for one in self._found}]:
            known = ", ".join(one.name for one in self._found)
            raise UserError(f"weights: {unknown[0]!r} is no principle of {self.principles}; they are {known}")
        self._found = [one._replace(weight=given.get(one.name, one.weight)) for one in self._found]
        if not any(one.weight for one in self._found):
            raise UserError(f"{self.principles}: all weights are 0")

    @property
    def name(self) -> str:
        """The judge's name, and the file's."""
        judge: Any = self.judge
        own = getattr(judge, "name", None) or getattr(judge, "__name__", type(judge).__name__)
        return f"{own} by {Path(self.principles).stem}"

    def score(self, candidates: Sequence[Candidate]) -> list[float]:
        """Return the weighted mean of the ratings of each response; NaN where one is missing."""
        return [one["score"] for one in self.explain(candidates)]

    def explain(self, candidates: Sequence[Candidate]) -> list[Features]:
        """Return the score of each response as `score`, with its rating by each principle."""
        ratings = [self._scorer(one).score(candidates) for one in self._found]
        return [self._features(row) for row in zip(*ratings, strict=True)]

    def _features(self, ratings: Sequence[float]) -> Features:
        weighed = [(one.weight, value) for one, value in zip(self._found, ratings, strict=True) if one.weight]
        score = math.fsum(w * value for w, value in weighed) / math.fsum(abs(w) for w, _ in weighed)
        return {"score": score, **{one.name: value for one, value in zip(self._found, ratings, strict=True)}}

    def _scorer(self, principle: Principle) -> Scorer:
        judge: Any = self.judge
        if hasattr(judge, "by"):
            return judge.by(Criterion(principle.name, MEASURE.format(principle.text)))
        return FunctionScorer(lambda prompt, response: judge(prompt, response, principle.text), principle.name)


def read_principles(path: str | Path) -> list[Principle]:
    """Return the principles of a file, as `Principles` takes it.

    Raises:
        UserError: it cannot be read, has none, or one is given twice or badly.
    """
    import yaml  # type: ignore[import-untyped]

    is_yaml = Path(path).suffix in (".yaml", ".yml")
    with explained(f"{path}: the principles cannot be read", OSError, UnicodeDecodeError, yaml.YAMLError):
        text = Path(path).read_text(encoding="utf-8")
        rows = yaml.safe_load(text) if is_yaml else dict.fromkeys(map(str.strip, text.splitlines()))
    if not isinstance(rows, dict):
        raise UserError(f"{path}: each principle needs a name, `NAME: text` or `NAME: {{text: ..., weight: ...}}`")
    if is_yaml:
        found = [_principle(path, name, given) for name, given in rows.items()]
    else:
        found = [Principle(line, line) for line in rows if line and not line.startswith("#")]
    if not found:
        raise UserError(f"{path}: there are no principles in it")
    return found


def _principle(path: str | Path, name: Any, given: Any) -> Principle:
    row = given if isinstance(given, dict) else {"text": given}
    text, weight = row.get("text"), row.get("weight", 1.0)
    is_text, is_number = isinstance(text, str) and text.strip(), isinstance(weight, int | float)
    if not is_text or not is_number or not math.isfinite(weight) or {*row} - {"text", "weight"}:
        raise UserError(f"{path}: {name}: a principle is a text, or has `text` and `weight`, a number; not {given!r}")
    return Principle(str(name), str(text), float(weight))
