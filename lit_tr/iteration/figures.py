"""What the figures of rounds say, and when they end."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

from lit_tr.errors import UserError
from lit_tr.evaluation.responses import Response
from lit_tr.iteration.pairing import Pairs

Figures = dict[str, Any]


@dataclass(frozen=True)
class Stop:
    """When rounds end early: length doubled over the rounds of Self-Rewarding Language Models (arXiv 2401.10020).

    Args:
        length: at a mean length of held-out responses above this, times that of the initial policy.
        kl: at a KL divergence from the initial policy above this, in nats per response.

    Raises:
        UserError: a limit is not above 0.
    """

    length: float | None = None
    kl: float | None = None

    def __post_init__(self) -> None:
        for name in ("length", "kl"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise UserError(f"stop.{name} must be above 0, not {value}")

    def why(self, done: Sequence[Figures]) -> str | None:
        """Return why no further round begins, if so."""
        first, last = done[0], done[-1]
        if self.length is not None and last["length"] > self.length * first["length"]:
            times = last["length"] / first["length"]
            return f"held-out responses are {times:.2f} times as long as those of the initial policy"
        if self.kl is not None and last["kl"] > self.kl:
            return f"the policy is {last['kl']:.2f} nats per response from the initial one"
        return None


def lines(done: Sequence[Figures]) -> list[Figures]:
    """Return the lines of `evaluation.jsonl` of rounds; that of the first one that exploits the reward says so."""
    first = exploited(done)
    return [line(one) | ({"exploited": True} if one["round"] == first else {}) for one in done]


def line(figures: Figures) -> Figures:
    """Return the line of a round: its score is by the truth where there is one, and then the reward is its proxy."""
    name = "truth" if "truth" in figures else "reward"
    names = {one: one for one in ("kl", "kl_standard_error", "length")}
    names |= {f"{name}{end}": f"score{end}" for end in ("", "_standard_error")} | {f"{name}_unscored": "unscored"}
    names |= {f"{name}_initial_win_rate{end}": f"win_rate{end}" for end in ("", "_interval")}
    if name == "truth":
        names |= {f"reward{end}": f"proxy{end}" for end in ("", "_standard_error")}
    label = "policy" if figures["round"] else "initial"
    known = {new: figures[old] for old, new in names.items() if old in figures}
    return {"step": figures["round"], "label": label, **known}


def no_pairs(number: int, pairs: Pairs, folder: Path) -> str:
    """Say why there are no pairs."""
    return (
        f"round {number}: no pair can be made of the candidates of {pairs.prompts} prompts "
        f"({_left_out(pairs.counts)}). They and their scores are in {folder}: give another reward, more "
        "sampling.samples or another sampling.temperature, and another output"
    )


def of_candidates(known: Sequence[Response], pairs: Pairs) -> Figures:
    """Return the figures of the candidates of a round and of its pairs."""
    scores = [one.score for one in known if one.score is not None]
    sure = fmean(one.confidence for one in pairs.found)
    unread = sum(one.features.get("unread", 0) for one in known if one.features)
    return {
        "candidates": len(known),
        "mean_score": fmean(scores),
        **({"unread": unread} if unread else {}),
        **pairs.counts,
        "confidence": sure,
        "longer_chosen": fmean(len(one.chosen) > len(one.rejected) for one in pairs.found),
    }


LEFT_OUT = {
    "ties": "tied",
    "too_few": "without two scored candidates that differ",
    "close": "closer than least_margin",
}
"""Why prompts are in no pair."""


def said(figures: Figures) -> str:
    """Return the figures of the candidates of a round in a line."""
    left = _left_out(figures)
    parts = [f"{figures['pairs']} pairs of {figures['prompts']} prompts" + (f" ({left} left out)" if left else "")]
    if figures["unscored"]:
        parts.append(f"{figures['unscored']} of {figures['candidates']} candidates have no score")
    if "unread" in figures:
        parts.append(f"{figures['unread']:.0f} judgements cannot be read")
    if figures["confidence"] < 1:
        parts.append(f"mean confidence {figures['confidence']:.2f}")
    parts.append(f"the chosen response is longer in {figures['longer_chosen']:.0%}")
    return ", ".join(parts)


def _left_out(figures: Figures) -> str:
    return ", ".join(f"{figures[name]} {text}" for name, text in LEFT_OUT.items() if figures[name])


def exploited(done: Sequence[Figures]) -> int | None:
    """Return the first round at which the reward rose and the truth fell, both beyond two standard errors, if any."""
    for before, now in zip(done, done[1:], strict=False):
        rises = now["reward"] - before["reward"], now.get("truth", nan) - before.get("truth", nan)
        errors = [
            sum(one.get(f"{name}_standard_error", nan) ** 2 for one in (before, now)) ** 0.5
            for name in ("reward", "truth")
            if name in now
        ]
        if len(errors) == 2 and rises[0] > 2 * errors[0] and rises[1] < -2 * errors[1]:
            return now["round"]
    return None
