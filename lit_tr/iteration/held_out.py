"""Figures of the policies of rounds on held-out prompts and pairs."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from statistics import fmean
from typing import Any

from lit_tr.evaluation.agreement import agreement
from lit_tr.evaluation.held_out import win_rate
from lit_tr.evaluation.kl import over_prompts
from lit_tr.evaluation.responses import Response, as_text, read
from lit_tr.evaluation.scored import PAIR
from lit_tr.iteration.figures import Figures
from lit_tr.iteration.scores import Scoring
from lit_tr.iteration.training import Chain, substituted

ROUND = "round.json"
"""File of the figures of a round, in its folder."""


@dataclass(frozen=True)
class HeldOut:
    """How the policies of rounds do on held-out prompts, by rewards that may be others in each round.

    Args:
        chain: the policies.
        rewards: the options of `reward` and `truth`, with `{policy}` and the other names in them: rounds with the same
            ones compare.
        score: returns responses with scores, which are kept in a file of a round: of its number, the name of the file,
            the responses, what scores them, and the file of its statistics.
    """

    chain: Chain
    rewards: Mapping[str, Any]
    score: Callable[..., list[Response]]

    def figures(self, number: int, responses: Sequence[Response], rewards: Mapping[str, Scoring]) -> Figures:
        """Return the figures of the policy of a round, from its held-out responses and the rewards of the round."""
        kl = over_prompts([one.kl or 0.0 for one in responses], [one.id for one in responses])
        found: Figures = {
            "kl": kl.mean,
            "kl_standard_error": kl.standard_error,
            "length": fmean(float(one.tokens or 0) for one in responses),
        }
        for name, scoring in rewards.items():
            found |= self._measured(number, name, responses, scoring)
        return found | self._agreement(number, responses, rewards["reward"])

    def _measured(self, number: int, name: str, responses: Sequence[Response], scoring: Scoring) -> Figures:
        """Return the mean score by a reward, and win rates against the round before and the initial policy."""
        scored = self._held_out(number, number, name, responses, scoring)
        with_score = [(one.score, one.id) for one in scored if one.score is not None]
        mean = over_prompts(*zip(*with_score, strict=True))
        found = {name: mean.mean, f"{name}_standard_error": mean.standard_error}
        if unscored := len(scored) - len(with_score):
            found[f"{name}_unscored"] = unscored
        for prefix, other in ((name, number - 1), (f"{name}_initial", 0)) if number else ():
            those = read(self.chain.round(other) / "held_out.jsonl")
            before = {one.key: one for one in self._held_out(number, other, name, those, scoring)}
            sides = scored, [before[one.key] for one in scored]
            ours, theirs = ([nan if one.score is None else one.score for one in side] for side in sides)
            rates = win_rate(ours, theirs, [one.id for one in scored])
            found |= {f"{prefix}_{key}": value for key, value in rates.items()}
        return found

    def _held_out(
        self, number: int, other: int, name: str, responses: Sequence[Response], scoring: Scoring
    ) -> list[Response]:
        """Return held-out responses of another round with scores by a reward of this one.

        Where the options of that reward name the policy, each round has another reward, and scores those anew.
        """
        own = f"held_out.{name}" + ("" if number == other else f".of_{other}")
        place, file = (other, f"held_out.{name}") if self._is_same(name, number, other) else (number, own)
        first = 0 if self._is_same(name, number, 0) else number
        statistics = self.chain.round(first) / f"held_out.{name}.statistics.json"
        return self.score(place, file, responses, scoring, statistics)

    def _is_same(self, name: str, number: int, other: int) -> bool:
        """Whether two rounds have the same reward."""
        ours, theirs = (substituted(self.rewards[name], self.chain.names(one)) for one in (number, other))
        return ours == theirs

    def _agreement(self, number: int, responses: Sequence[Response], reward: Scoring) -> Figures:
        """Return how far the reward agrees with the labels of held-out pairs, where there are any."""
        if number and self._is_same("reward", number, number - 1):
            before = json.loads((self.chain.round(number - 1) / ROUND).read_text())
            return {name: value for name, value in before.items() if name.startswith("agreement")}
        pairs = [one for one in responses if one.chosen and one.rejected]
        if not pairs:
            return {}
        sides = [[_of_row(one, sample, side) for one in pairs] for sample, side in enumerate(PAIR)]
        known = self.score(number, "held_out.pairs", [*sides[0], *sides[1]], reward)
        found = agreement(known[: len(pairs)], known[len(pairs) :])
        return {"agreement": found.agreement, "agreement_interval": list(found.interval)} if found else {}


def _of_row(one: Response, sample: int, side: str) -> Response:
    """Return the chosen or the rejected response of the row that a prompt came from."""
    text = as_text(getattr(one, side))
    return Response(one.id, one.prompt, text, sample, side, reference_answer=one.reference_answer, kind=one.kind)
