"""Rounds: sample candidates, score them, pair them, train on the pairs, evaluate; each phase goes on after any stop."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from math import nan
from pathlib import Path
from typing import Any

from lit_tr.data.rows import Objects, Source
from lit_tr.errors import UserError, explained
from lit_tr.evaluation import evaluations
from lit_tr.evaluation.answering import Policy, ResponseFile
from lit_tr.evaluation.local import LocalPolicy
from lit_tr.evaluation.prompts import Prompt, Reader, read_prompts
from lit_tr.evaluation.responses import Response, write_whole
from lit_tr.evaluation.sampling import Sampling
from lit_tr.iteration.confidence import Confidence, Scores
from lit_tr.iteration.figures import Figures, Stop, lines, no_pairs, of_candidates, said
from lit_tr.iteration.held_out import ROUND, HeldOut
from lit_tr.iteration.instruct import SelfInstruct
from lit_tr.iteration.pairing import OTHER, Pairing
from lit_tr.iteration.scores import Scoring, complete_scores, kept
from lit_tr.iteration.serve import Serve, Served
from lit_tr.iteration.spread import Spread
from lit_tr.iteration.training import FORMAT, Chain, Config, pair_rows
from lit_tr.rewards import Candidate, Reward, as_scorer

Watch = Callable[[str, int, int], Any]
"""From what is counted, how many there are and how many are done to a context whose value takes how many more are."""
PAIRS, COUNTS = "pairs.jsonl", "pairs.json"


@dataclass(frozen=True)
class Parts:
    """What a round is made of.

    Args:
        reward: scores candidates and held-out responses.
        pairing: makes pairs of scored candidates.
        confidence: says how sure the pairs are; None is sure of all.
        truth: another reward, which only measures.
        others: paths of further policies that respond beside that of the round, by their names.
        fit: the configuration of the training.
        instruct: writes the prompts; None takes those of the source.
        serve: a server of the round's policy, for its candidates; None takes transformers.
    """

    reward: Scoring
    pairing: Pairing
    confidence: Confidence | None
    truth: Scoring | None
    others: Mapping[str, str]
    fit: Config
    instruct: SelfInstruct | None = None
    serve: Serve | None = None

    @property
    def rewards(self) -> Mapping[str, Scoring]:
        """What measures a policy, by name."""
        return {"reward": self.reward} | ({"truth": self.truth} if self.truth else {})


@dataclass(frozen=True)
class Rounds:
    """Rounds in a folder, each in `round_N`.

    Args:
        chain: the policies.
        parts: returns what a round is made of, by what `{policy}` and the other names stand for in it.
        rewards: the options of `reward` and `truth`, with these names in them: rounds with the same ones compare.
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
        max_bad_rows: how many rows without a prompt may be left out: a share below 1, a count from 1 on.
        devices: where policies respond: several processes do on several, and this one otherwise.
        pair_format: what makes examples of a pair, as the option `format` of rows.
    """

    chain: Chain
    parts: Callable[[Mapping[str, str]], Parts]
    rewards: Mapping[str, Any]
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
    max_bad_rows: float = 0.01
    devices: Sequence[str] = ()
    pair_format: Any = FORMAT

    def check(self) -> None:
        """Check, before anything is written, that there are a policy to begin with, prompts and held-out rows.

        Raises:
            UserError: there are none.
        """
        first = self.chain.other(self.chain.base, "base")
        first.reader(self.sampling)
        given = {"prompts": (self.source, self.prompts), "held_out": (self.held_out, self.evaluated)}
        for name, (source, most) in given.items():
            with explained(f"{name}: no prompts can be taken from it", UserError):
                self._read(source, first, most)

    def run(self, count: int) -> list[Figures]:
        """Make rounds, and return the figures of each; the first are those of the initial policy.

        Raises:
            UserError: a phase cannot be done; what is done stays.
        """
        done = [self._figures(0, self._warmed_up)]
        self._write(done)
        for number in range(1, count + 1):
            if why := self.stop.why(done):
                self.say(f"no round {number}: {why}")
                break
            done.append(self._figures(number, lambda number=number: self._trained(number)))  # type: ignore[misc]
            self._write(done)
        return done

    def _write(self, done: Sequence[Figures]) -> None:
        evaluations.add(self.chain.folder / evaluations.EVALUATIONS, lines(done))

    def _figures(self, number: int, make: Callable[[], Figures]) -> Figures:
        """Return the figures of a round, from its file or by making it."""
        file = self.chain.round(number) / ROUND
        if file.exists():
            return json.loads(file.read_text())
        made = {"round": number, **make(), **self._held_out(number)}
        found = {name: value for name, value in made.items() if value == value}  # of one prompt errors are nan
        write_whole(file, json.dumps(found, indent=2) + "\n")
        return found

    def _warmed_up(self) -> Figures:
        """Train before the first round, where that is configured."""
        folder = self.chain.round(0)
        if self.warm_up and not (folder / "policy").exists():
            self.train(folder, self.chain.fit(self.warm_up, 0, None))
        return {}

    def _trained(self, number: int) -> Figures:
        """Make the pairs of a round and train on them; return the figures of its candidates."""
        folder, fit = self.chain.round(number), self._paired(number)  # no reward is in memory any more
        found = json.loads((folder / COUNTS).read_text())
        self.say(f"round {number}: {said(found)}")
        if not (folder / "policy").exists():
            first = json.loads((folder / PAIRS).read_text().partition("\n")[0])
            rows = pair_rows(folder / PAIRS, not isinstance(first["prompt"], str), self.pair_format)
            self.train(folder, self.chain.fit(fit, number, rows))
        return found

    def _paired(self, number: int) -> Config:
        """Make the pairs of a round; return the configuration that trains on them."""
        folder, parts = self.chain.round(number), self.parts(self.chain.names(number))
        if not (folder / COUNTS).exists():
            candidates = self._candidates(number, self._prompts(number, parts), parts)
            known = self._scored(number, "scores", candidates, parts.reward)
            pairs = parts.pairing(known)
            if not pairs.found:
                raise UserError(no_pairs(number, pairs, folder))
            if parts.confidence:
                pairs = parts.confidence(pairs, known, self._keeping(number))
            rows = (json.dumps(one.row, ensure_ascii=False) for one in pairs.found)
            write_whole(folder / PAIRS, "".join(f"{row}\n" for row in rows))
            write_whole(folder / COUNTS, json.dumps(of_candidates(known, pairs)) + "\n")
        return parts.fit

    def _prompts(self, number: int, parts: Parts) -> list[Prompt]:
        source, before = self.source, (number - 1) * self.prompts
        if parts.instruct is not None:
            source, before = self._new_prompts(number, parts.instruct), 0
        every = self._read(source, self.chain.opened(number - 1), before + self.prompts)
        start = before % len(every)
        picked = [*every, *every][start : start + min(self.prompts, len(every))]
        picked = self._whole(number, picked) if parts.serve else picked
        lines = (json.dumps({"id": one.id, "prompt": one.shown}, ensure_ascii=False) for one in picked)
        write_whole(self.chain.round(number) / "prompts.jsonl", "".join(f"{line}\n" for line in lines))
        return picked

    def _whole(self, number: int, picked: list[Prompt]) -> list[Prompt]:
        """Return the prompts that need not be truncated: a server is sent the whole of one, and refuses it."""
        whole = [one for one in picked if not one.truncated]
        if left := len(picked) - len(whole):
            said = f"round {number}: {left} of {len(picked)} prompts are too long for the model and left out"
            if not whole:
                raise UserError(f"{said}: give other prompts, or fewer sampling.max_new_tokens")
            self.say(said)
        return whole

    def _read(self, source: Source, policy: Policy, most: int) -> list[Prompt]:
        return read_prompts(source, policy.reader(self.sampling), most, self.max_bad_rows).found

    def _new_prompts(self, number: int, instruct: SelfInstruct) -> Source:
        """Return prompts that a policy writes after the pattern of those of the source."""
        every = read_prompts(self.source, Reader(), max_bad_rows=self.max_bad_rows).found
        known = [Candidate(one.shown, "").query for one in every]
        files = [self.chain.round(i) / "prompts.jsonl" for i in range(1, number)]
        lines = [line for file in files for line in file.read_text().split("\n") if line]
        earlier = [Candidate(json.loads(line)["prompt"], "").query for line in lines]
        writer = self._policy(self.chain.other, instruct.policy, f"prompts of round {number}")
        found = instruct.write(self.chain.round(number) / "instruct", writer, known, earlier, self.prompts, self.watch)
        if len(found) < self.prompts:
            self.say(f"round {number}: {len(found)} of {self.prompts} new prompts pass the filters")
        return Objects([{"prompt": text} for text in found])

    def _candidates(self, number: int, prompts: list[Prompt], parts: Parts) -> list[Response]:
        folder, found = self.chain.round(number) / "candidates", list[Response]()
        policies = [self._policy(self.chain.opened, number - 1)]
        if parts.serve:
            policies = [Served(self.chain.opened(number - 1), self.chain.path(number - 1), parts.serve)]
        policies += [self._policy(self.chain.other, path, f"{OTHER}{name}") for name, path in parts.others.items()]
        for i, policy in enumerate(policies):
            file = ResponseFile(folder / f"{i}.jsonl", policy, prompts, self.sampling)
            made = self._responses(f"round {number}: candidates", file)
            found += [replace(one, sample=one.sample + i * self.sampling.samples) for one in made]
        return found

    def _policy(self, opened: Callable[..., LocalPolicy], *which: Any) -> Policy:
        """Return a policy of the chain, on all devices."""
        there = partial(opened, *which, self.batch_tokens)
        return Spread(there(), there, self.devices) if len(self.devices) > 1 else there()

    def _responses(self, label: str, file: ResponseFile) -> list[Response]:
        with self.watch(label, file.total, len(file.done())) as tell:
            return file.complete(lambda some: tell(len(some)))

    def _scored(
        self, number: int, name: str, those: Sequence[Response], scoring: Scoring, statistics: Path | None = None
    ) -> list[Response]:
        """Return responses with scores, which are kept in a file of a round."""
        path = self.chain.round(number) / f"{name}.jsonl"
        label = f"round {number}: {name.replace('_', '-').replace('.', ' ')}"
        with self.watch(label, len(those), len(kept(path))) as tell:
            return complete_scores(path, those, scoring.scorer, tell, statistics, scoring.elsewhere)

    def _keeping(self, number: int) -> Scores:
        """Return what scores candidates by further rewards, each in a file of a round."""
        names = (f"scores.{i}" for i in count(1))

        def score(reward: Reward, candidates: Sequence[Response]) -> list[float]:
            made = self._scored(number, next(names), candidates, Scoring(as_scorer(reward)))
            return [nan if one.score is None else one.score for one in made]

        return score

    def _held_out(self, number: int) -> Figures:
        """Return how the policy of a round does on held-out prompts and pairs."""
        policy, sampling = self._policy(self.chain.measured, number), replace(self.sampling, samples=1)
        prompts = self._read(self.held_out, policy, self.evaluated)
        file = ResponseFile(self.chain.round(number) / "held_out.jsonl", policy, prompts, sampling)
        responses = self._responses(f"round {number}: held-out responses", file)
        rewards = self.parts(self.chain.names(number)).rewards
        return HeldOut(self.chain, self.rewards, self._scored).figures(number, responses, rewards)
