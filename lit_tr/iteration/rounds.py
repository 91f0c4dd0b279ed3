"""Rounds: sample candidates, score them, pair them, train on the pairs, evaluate; each phase goes on after any stop."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

from lit_tr.data.rows import Objects, Source
from lit_tr.errors import UserError
from lit_tr.evaluation import evaluations
from lit_tr.evaluation.agreement import agreement
from lit_tr.evaluation.answering import ResponseFile
from lit_tr.evaluation.held_out import win_rate
from lit_tr.evaluation.kl import over_prompts
from lit_tr.evaluation.prompts import Prompt, Reader, read_prompts
from lit_tr.evaluation.responses import Response, as_text, read
from lit_tr.evaluation.sampling import Sampling
from lit_tr.evaluation.scored import PAIR
from lit_tr.iteration.confidence import Confidence
from lit_tr.iteration.instruct import SelfInstruct
from lit_tr.iteration.pairing import OTHER, Pairing, Pairs
from lit_tr.iteration.scores import complete_scores
from lit_tr.iteration.training import Chain, Config, pair_rows
from lit_tr.rewards import Candidate, Scorer

Figures = dict[str, Any]
Watch = Callable[[str, int], Any]
"""From what is counted and how many there are to a context whose value takes how many more are done."""
ROUND, PAIRS = "round.json", "pairs.jsonl"


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


@dataclass(frozen=True)
class Parts:
    """What a round is made of.

    Args:
        reward: scores candidates and held-out responses.
        pairing: makes pairs of scored candidates.
        confidence: says how sure the pairs are; None is sure of all.
        truth: another reward, which only measures.
        others: paths of further policies that respond beside that of the round.
        fit: the configuration of the training.
        instruct: writes the prompts; None takes those of the source.
    """

    reward: Scorer
    pairing: Pairing
    confidence: Confidence | None
    truth: Scorer | None
    others: Sequence[str]
    fit: Config
    instruct: SelfInstruct | None = None


@dataclass(frozen=True)
class Rounds:
    """Rounds in a folder, each in `round_N`.

    Args:
        chain: the policies.
        parts: returns what a round is made of, by what `{policy}` and the other names stand for in it.
        sampling: how candidates are drawn.
        prompts: prompts of each round, taken in the order of the source; after the last the first comes again.
        source: rows with prompts.
        held_out: rows that evaluate; pairs among them say how far the reward agrees with people.
        evaluated: how many of their prompts are responded to.
        train: trains by a configuration, in a folder, and writes the policy into its `policy`.
        say: prints a line.
        watch: shows how far a phase is.
        warm_up: the configuration of a training before round 1, if the chain is warmed up.
        stop: when rounds end early.
        batch_tokens: most tokens of a batch.
    """

    chain: Chain
    parts: Callable[[Mapping[str, str]], Parts]
    sampling: Sampling
    prompts: int
    source: Source
    held_out: Source
    evaluated: int
    train: Callable[[Path, Config], None]
    say: Callable[[str], None]
    watch: Watch
    warm_up: Config | None = None
    stop: Stop = Stop()
    batch_tokens: int | None = None

    def run(self, count: int) -> list[Figures]:
        """Make rounds, and return the figures of each; the first are those of the initial policy.

        Raises:
            UserError: a phase cannot be done; what is done stays.
        """
        done = [self._figures(0, self._warmed_up)]
        for number in range(1, count + 1):
            if why := self.stop.why(done):
                self.say(f"no round {number}: {why}")
                break
            done.append(self._figures(number, lambda number=number: self._trained(number)))  # type: ignore[misc]
        evaluations.write(self.chain.folder / evaluations.EVALUATIONS, [self._line(one) for one in done])
        return done

    def _figures(self, number: int, make: Callable[[], Figures]) -> Figures:
        """Return the figures of a round, from its file or by making it."""
        file = self.chain.round(number) / ROUND
        if file.exists():
            return json.loads(file.read_text())
        found = {"round": number, **make(), **self._evaluated(number)}
        _replace(file, json.dumps(found, indent=2) + "\n")
        return found

    def _warmed_up(self) -> Figures:
        """Train before the first round, where that is configured."""
        folder = self.chain.round(0)
        if self.warm_up and not (folder / "policy").exists():
            self.train(folder, self.chain.fit(self.warm_up, 0, None))
        return {}

    def _trained(self, number: int) -> Figures:
        """Make the pairs of a round and train on them; return the figures of its candidates."""
        folder, parts = self.chain.round(number), self.parts(self.chain.names(number))
        file, counts = folder / PAIRS, folder / "pairs.json"
        if not counts.exists():
            prompts = self._prompts(number, parts.instruct)
            candidates = self._candidates(number, prompts, parts.others)
            with self.watch(f"round {number}: scores", len(candidates)) as tell:
                known = complete_scores(folder / "scores.jsonl", candidates, parts.reward, tell)
            pairs = parts.pairing(known)
            if not pairs.found:
                raise UserError(f"round {number}: no pair can be made of its candidates: {pairs.counts} ({folder})")
            if parts.confidence:
                pairs = parts.confidence(pairs, known)
            _replace(file, "".join(json.dumps(one.row, ensure_ascii=False) + "\n" for one in pairs.found))
            _replace(counts, json.dumps(_of_candidates(known, pairs)) + "\n")
        found = json.loads(counts.read_text())
        self.say(f"round {number}: {said(found)}")
        if not (folder / "policy").exists():
            is_chat = '"prompt": [' in file.read_text().partition("\n")[0]
            self.train(folder, self.chain.fit(parts.fit, number, pair_rows(file, is_chat)))
        return found

    def _prompts(self, number: int, instruct: SelfInstruct | None) -> list[Prompt]:
        reader = self.chain.opened(number - 1).reader(self.sampling)
        source, before = self.source, (number - 1) * self.prompts
        if instruct is not None:
            source, before = self._new_prompts(number, instruct), 0
        every = read_prompts(source, reader, before + self.prompts).found
        start = before % len(every)
        picked = [*every, *every][start : start + min(self.prompts, len(every))]
        lines = (json.dumps({"id": one.id, "prompt": one.shown}, ensure_ascii=False) for one in picked)
        _replace(self.chain.round(number) / "prompts.jsonl", "".join(f"{line}\n" for line in lines))
        return picked

    def _new_prompts(self, number: int, instruct: SelfInstruct) -> Source:
        """Return prompts that a policy writes after the pattern of those of the source."""
        known = [Candidate(one.shown, "").query for one in read_prompts(self.source, Reader()).found]
        files = [self.chain.round(i) / "prompts.jsonl" for i in range(1, number)]
        lines = [line for file in files for line in file.read_text().split("\n") if line]
        earlier = [Candidate(json.loads(line)["prompt"], "").query for line in lines]
        writer = self.chain.other(instruct.policy, f"prompts of round {number}", self.batch_tokens)
        found = instruct.write(self.chain.round(number) / "instruct", writer, known, earlier, self.prompts, self.watch)
        if len(found) < self.prompts:
            self.say(f"round {number}: {len(found)} of {self.prompts} new prompts pass the filters")
        return Objects([{"prompt": text} for text in found])

    def _candidates(self, number: int, prompts: list[Prompt], others: Sequence[str]) -> list[Response]:
        folder, found = self.chain.round(number) / "candidates", list[Response]()
        policies = [self.chain.opened(number - 1, self.batch_tokens)]
        policies += [self.chain.other(path, f"{OTHER}{path}", self.batch_tokens) for path in others]
        for i, policy in enumerate(policies):
            file = ResponseFile(folder / f"{i}.jsonl", policy, prompts, self.sampling)
            with self.watch(f"round {number}: candidates", file.total) as tell:
                tell(len(file.done()))
                made = file.complete(lambda some: tell(len(some)))
            found += [replace(one, sample=one.sample + i * self.sampling.samples) for one in made]
        return found

    def _evaluated(self, number: int) -> Figures:
        """Return how the policy of a round does on held-out prompts and pairs."""
        folder, parts = self.chain.round(number), self.parts(self.chain.names(number))
        sampling = replace(self.sampling, samples=1)
        policy = self.chain.opened(number, self.batch_tokens)
        prompts = read_prompts(self.held_out, policy.reader(sampling), self.evaluated).found
        measured = replace(policy, initial=self.chain.opened(0), identity=policy.identity | {"kl": True})
        file = ResponseFile(folder / "held_out.jsonl", measured, prompts, sampling)
        with self.watch(f"round {number}: held-out responses", file.total) as tell:
            tell(len(file.done()))
            responses = file.complete(lambda some: tell(len(some)))
        ids = [one.id for one in responses]
        kl = over_prompts([one.kl or 0.0 for one in responses], ids)
        found: Figures = {
            "kl": kl.mean,
            "kl_standard_error": kl.standard_error,
            "length": fmean(float(one.tokens or 0) for one in responses),
        }
        for name, scorer in (("reward", parts.reward), ("truth", parts.truth)):
            if scorer is not None:
                known = complete_scores(folder / f"held_out.{name}.jsonl", responses, scorer)
                found |= self._measured(number, name, known, scorer)
        return found | self._agreement(number, responses, parts.reward)

    def _measured(self, number: int, name: str, known: Sequence[Response], scorer: Scorer) -> Figures:
        """Return mean score and win rate against the round before, both sides scored by the reward of this round."""
        with_score = [(one.score, one.id) for one in known if one.score is not None]
        mean = over_prompts(*zip(*with_score, strict=True))
        found = {name: mean.mean, f"{name}_standard_error": mean.standard_error}
        if unscored := len(known) - len(with_score):
            found[f"{name}_unscored"] = unscored
        if not number:
            return found
        earlier = read(self.chain.round(number - 1) / "held_out.jsonl")
        scored = complete_scores(self.chain.round(number) / f"held_out.{name}.before.jsonl", earlier, scorer)
        before = {one.key: one for one in scored}
        sides = known, [before[one.key] for one in known]
        ours, theirs = ([nan if one.score is None else one.score for one in side] for side in sides)
        rates = win_rate(ours, theirs, [one.id for one in known])
        return found | {f"{name}_{key}": value for key, value in rates.items()}

    def _agreement(self, number: int, responses: Sequence[Response], reward: Scorer) -> Figures:
        """Return how far the reward agrees with the labels of held-out pairs, where there are any."""
        sides = [
            [
                replace(one, response=as_text(text), sample=sample, tokens=None, kl=None)
                for one in responses
                if (text := getattr(one, side)) and one.chosen and one.rejected
            ]
            for sample, side in enumerate(PAIR)
        ]
        if not sides[0]:
            return {}
        known = complete_scores(self.chain.round(number) / "held_out.pairs.jsonl", [*sides[0], *sides[1]], reward)
        found = agreement(known[: len(sides[0])], known[len(sides[0]) :])
        return {"agreement": found.agreement, "agreement_interval": list(found.interval)} if found else {}

    @staticmethod
    def _line(figures: Figures) -> Figures:
        """Return the line of `evaluation.jsonl` of a round: by the truth where there is one, else by the reward."""
        name = "truth" if "truth" in figures else "reward"
        kept = {key: figures[key] for key in ("kl", "kl_standard_error", "length")}
        scores = {
            key.replace(name, "score", 1) if "win_rate" not in key else key.removeprefix(f"{name}_"): value
            for key, value in figures.items()
            if key.startswith(name)
        }
        return {"step": figures["round"], "label": "policy" if figures["round"] else "initial", **kept, **scores}


def _of_candidates(known: Sequence[Response], pairs: Pairs) -> Figures:
    """Return the figures of the candidates of a round and of its pairs."""
    scores = [one.score for one in known if one.score is not None]
    sure = fmean(one.confidence for one in pairs.found)
    return {
        "candidates": len(known),
        "mean_score": fmean(scores),
        **pairs.counts,
        "confidence": sure,
        "longer_chosen": fmean(len(one.chosen) > len(one.rejected) for one in pairs.found),
    }


def said(figures: Figures) -> str:
    """Return the figures of the candidates of a round in a line."""
    why = {"ties": "ties", "too_few": "without two scored candidates that differ", "close": "closer than least_margin"}
    left = ", ".join(f"{figures[name]} {text}" for name, text in why.items() if figures[name])
    parts = [f"{figures['pairs']} pairs of {figures['prompts']} prompts" + (f" ({left} left out)" if left else "")]
    if figures["unscored"]:
        parts.append(f"{figures['unscored']} of {figures['candidates']} candidates have no score")
    if figures["confidence"] < 1:
        parts.append(f"mean confidence {figures['confidence']:.2f}")
    parts.append(f"the chosen response is longer in {figures['longer_chosen']:.0%}")
    return ", ".join(parts)


def exploited(done: Sequence[Figures]) -> int | None:
    """Return the first round at which the reward rose and the truth fell, both beyond two standard errors, if any."""
    for before, now in zip(done, done[1:], strict=False):
        rises = now["reward"] - before["reward"], now.get("truth", nan) - before.get("truth", nan)
        errors = [
            (before[f"{name}_standard_error"] ** 2 + now[f"{name}_standard_error"] ** 2) ** 0.5
            for name in ("reward", "truth")
            if name in now
        ]
        if len(errors) == 2 and rises[0] > 2 * errors[0] and rises[1] < -2 * errors[1]:
            return now["round"]
    return None


def _replace(file: Path, text: str) -> None:
    """Write a file as a whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.partial")
    partial.write_text(text)
    partial.replace(file)
