"""The rates at which an average of a policy with its initial policy is best, by a metric on held-out rows."""

import random
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from lit_tr.data.datamodule import Data
from lit_tr.data.rows import Source
from lit_tr.errors import UserError, explained
from lit_tr.evaluation.intervals import standard_error
from lit_tr.evaluation.policies import Loading
from lit_tr.evaluation.policy_metrics import Metric
from lit_tr.evaluation.prompts import held_out, source_of
from lit_tr.policy.averages import Averages

Rates = tuple[float, ...]


@dataclass(frozen=True)
class Trial:
    """What a metric says of an average.

    Args:
        rates: its rates, from the input to the output.
        value: mean of the metric.
        standard_error: that of the mean; None if the metric gave one value alone.
        difference: mean less that of the policy, over the rows that both have a value for.
        difference_error: standard error of the difference, paired by rows.
    """

    rates: Rates
    value: float
    standard_error: float | None = None
    difference: float | None = None
    difference_error: float | None = None

    def __str__(self) -> str:
        """Return the rates and the figures in a line."""
        line = f"rate {_listed(self.rates):<{5 * len(self.rates)}} {_figure(self.value, self.standard_error)}"
        if self.difference is None:
            return line
        return f"{line}   {_figure(self.difference, self.difference_error, '+')} against the policy"


@dataclass(frozen=True)
class Averaged:
    """The rates of an average, and how they were found.

    Args:
        rates: the rates, from the input to the output.
        metric: name of the metric that they are best by; None where they were given.
        trials: all that was tried, by rates.
    """

    rates: Rates
    metric: str | None = None
    trials: tuple[Trial, ...] = ()

    def __str__(self) -> str:
        """Return the rates in a line."""
        by = f", the best of {len(self.trials)} by {self.metric}" if self.metric else ""
        return f"rate{'s' if len(self.rates) > 1 else ''} {_listed(self.rates)}{by}"

    def as_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    def markdown(self) -> str:
        """Return a table of the trials, the best one in bold."""
        rows = [_row(one, one.rates == self.rates) for one in self.trials]
        return "\n".join([f"| rates | {self.metric} | against the policy |", "| --- | --- | --- |", *rows])


@dataclass(frozen=True)
class RateSearch:
    """A search over the averages of a policy with its initial policy, for the highest value of a metric.

    A grid of one rate for all layers, with the policy and the initial policy in it; then, with several groups of
    layers, coordinate search from the best of these: each group in turn takes its best rate of the grid, the others
    held, until a turn of all groups changes nothing. The random state is seeded for each average. Of equal values the
    one with the higher rates is taken.

    In adaptive model averaging (Lin et al. 2023, arXiv 2309.06256) the rates maximize the alignment reward at a fixed
    mean, for the reward alone would choose the policy. Here the metric is yours and the mean is free: what must not be
    lost has to be in the metric.

    Args:
        metric: a function or class by its import path: takes a model, its tokenizer and held-out rows, and returns a
            value or one for each row; higher is better. `lit_tr.evaluation.JudgedScore` and
            `lit_tr.evaluation.RankingAccuracy` are there.
        groups: how many groups of consecutive layers have a rate of their own.
        steps: the grid is 0, 1/steps, ..., 1.
        data: held-out rows; None takes the validation rows of the run.
        seed: seed of the random state at each average.
        device: where the averages are computed with; None takes a GPU if there is one.

    Raises:
        UserError: a number is below 1, or the metric cannot be called.
    """

    metric: Metric
    groups: int = 1
    steps: int = 10
    data: Data | None = None
    seed: int = 0
    device: str | None = None

    def __post_init__(self) -> None:
        if not callable(self.metric):
            raise UserError(f"average.metric: {self.metric!r} cannot be called; give a function or a callable object")
        if min(self.groups, self.steps) < 1:
            raise UserError("average: groups and steps must be at least 1")

    @property
    def name(self) -> str:
        """The metric's name."""
        return getattr(self.metric, "__name__", type(self.metric).__name__)

    @property
    def placed(self) -> str:
        """The device."""
        return Loading(device=self.device).placed

    def rows(self, config: Mapping[str, Any], checkpoint: str | Path) -> Source | None:
        """Return the held-out rows: `data`, or the validation rows of a run; None where there are none.

        Args:
            config: the configuration of the run.
            checkpoint: a checkpoint of it, for messages.

        Raises:
            UserError: they cannot be read, or there are none and the metric needs them.
        """
        rows = source_of(self.data) if self.data else held_out(config, checkpoint)
        if rows is None and getattr(self.metric, "needs_rows", False):
            raise UserError(f"average: {self.name} needs held-out rows, and the run has no data.val: give average.data")
        return rows

    def __call__(
        self,
        averages: Averages,
        tokenizer: Any,
        rows: Source | None,
        tell: Callable[[Trial], None] = lambda trial: None,
    ) -> Averaged:
        """Return the best rates.

        Args:
            averages: the averages; they are left at the last one that was tried.
            tokenizer: the policy's.
            rows: the held-out rows.
            tell: called with each trial.
        """
        trials: dict[Rates, Trial] = {}
        whole = (1.0,) * self.groups
        policy = self._values(averages, whole, tokenizer, rows)

        def value(rates: Rates) -> tuple[float, float]:
            if rates not in trials:
                values = policy if rates == whole else self._values(averages, rates, tokenizer, rows)
                trials[rates] = _trial(rates, values, policy)
                tell(trials[rates])
            return trials[rates].value, sum(rates)

        grid = [step / self.steps for step in range(self.steps, -1, -1)]
        best, before = max(((rate,) * self.groups for rate in grid), key=value), None
        while best != before and self.groups > 1:
            before = best
            for group in range(self.groups):
                best = max(((*best[:group], rate, *best[group + 1 :]) for rate in grid), key=value)
        return Averaged(best, self.name, tuple(trials[rates] for rates in sorted(trials)))

    def _values(self, averages: Averages, rates: Rates, tokenizer: Any, rows: Source | None) -> np.ndarray:
        """Return the values of the metric, `(rows,)` or `(1,)`; nan where it has none."""
        with isolate_rng(), averages.at(rates) as model:
            for seed in (random.seed, np.random.seed, torch.manual_seed):
                seed(self.seed)
            found = self.metric(model, tokenizer, rows)
        with explained(f"average.metric: {self.name} must return numbers, not {found!r}", TypeError, ValueError):
            values = np.atleast_1d(np.asarray(found, dtype=float))
        if not np.isfinite(values).any():
            raise UserError(f"average.metric: {self.name} gave no number for the rates {rates}, but {found!r}")
        return values


def _trial(rates: Rates, values: np.ndarray, policy: np.ndarray) -> Trial:
    given = values[~np.isnan(values)]
    made = Trial(rates, float(given.mean()), standard_error(given))
    if values is policy or values.shape != policy.shape:
        return made
    apart = (values - policy)[~np.isnan(values - policy)]
    return replace(made, difference=float(apart.mean()), difference_error=standard_error(apart)) if len(apart) else made


def _row(trial: Trial, best: bool) -> str:
    shown = _listed(trial.rates)
    against = "" if trial.difference is None else _figure(trial.difference, trial.difference_error, "+")
    return f"| {f'**{shown}**' if best else shown} | {_figure(trial.value, trial.standard_error)} | {against} |"


def _listed(rates: Rates) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)


def _figure(value: float, error: float | None, sign: str = "") -> str:
    return f"{value:{sign}.3f}" + (f" ± {error:.3f}" if error is not None else "")
