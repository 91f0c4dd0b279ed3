"""New prompts, written by a policy after the pattern of known ones."""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_tr.data.rows import Objects
from lit_tr.errors import UserError
from lit_tr.evaluation.answering import Policy, ResponseFile
from lit_tr.evaluation.prompts import read_prompts
from lit_tr.evaluation.sampling import Sampling
from lit_tr.rewards.overlap import rouge_l

HEAD = "Here is a list of tasks for an assistant, each of another kind than those before it."
NEXT = re.compile(r"\n\s*Task \d+:")
"""Where a policy begins one more task than it was asked for."""
UNSUITED = (
    *("audio", "chart", "charts", "diagram", "draw", "file", "files", "graph", "graphs", "image", "images", "map"),
    *("maps", "music", "photo", "photos", "picture", "pictures", "plot", "video", "videos"),
)
"""Words of tasks that text alone cannot solve, after those that Self-Instruct's code filters by."""


@dataclass(frozen=True)
class SelfInstruct:
    """Writes new prompts by few-shot prompting (Self-Instruct, arXiv 2212.10560, Sec. 2.2 and 2.3).

    Each is asked for behind some known prompts, picked at random, and kept if it passes the filters. The default
    settings are those of Self-Rewarding Language Models (arXiv 2401.10020, Sec. 3.1), whose one writer of prompts is a
    fixed chat model.

    Args:
        policy: path of the policy that writes, such as `{base}` or `{initial}`; one that stays the same.
        shots: known prompts that it is shown.
        temperature: of its samples.
        top_p: draw from the likeliest tokens that together have at least this probability.
        max_new_tokens: most tokens of a new prompt.
        most_overlap: a prompt whose ROUGE-L with a known or new one is at least this is left out.
        least_words: fewest words of a prompt.
        most_words: most words of a prompt.
        unsuited: prompts with one of these words are left out; capitals do not matter.
        attempts: how often so many prompts are asked for as are wanted, until there are enough.
        seed: of samples and of the known prompts that are shown.

    Raises:
        UserError: a number is out of its range.
    """

    policy: str = "{base}"
    shots: int = 8
    temperature: float = 0.6
    top_p: float = 0.9
    max_new_tokens: int = 128
    most_overlap: float = 0.7
    least_words: int = 4
    most_words: int = 150
    unsuited: Sequence[str] = UNSUITED
    attempts: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.shots, self.attempts, self.least_words) < 1 or self.most_words < self.least_words:
            raise UserError("instruct: shots, attempts and least_words must be at least 1, most_words least_words")
        if not 0 < self.most_overlap <= 1:
            raise UserError(f"instruct: most_overlap must be in (0, 1], not {self.most_overlap}")
        self._sampling(0)

    def write(
        self,
        folder: Path,
        policy: Policy,
        known: Sequence[str],
        earlier: Sequence[str],
        count: int,
        watch: Callable[[str, int, int], AbstractContextManager[Callable[[int], Any]]],
    ) -> list[str]:
        """Return new prompts, fewer than `count` where the attempts do not give so many.

        What the policy writes is kept in a file for each attempt, and is gone on with after any stop.

        Args:
            folder: of the files.
            policy: the policy; its name says which samples are drawn.
            known: prompts that it is shown some of, and that new ones must differ from.
            earlier: further prompts that they must differ from.
            count: how many are wanted.
            watch: shows how far it is.

        Raises:
            UserError: none passes the filters.
        """
        kept = _Different([*known, *earlier], self.most_overlap)
        for attempt in range(self.attempts):
            for text in self._written(folder, policy, known, count, attempt, watch):
                if len(kept.new) < count and self.suits(text):
                    kept.add(text)
            if len(kept.new) == count:
                break
        if not kept.new:
            raise UserError(
                f"instruct: none of the {self.attempts * count} prompts that {policy.name} wrote passes the filters: "
                f"see {folder}"
            )
        return kept.new

    def suits(self, text: str) -> bool:
        """Return whether a prompt passes the filters by its own words: length, key words, and how it begins."""
        words = re.findall(r"\w+", text.lower())
        fits = self.least_words <= len(words) <= self.most_words
        return fits and text[0].isalnum() and text[0].isascii() and not {*self.unsuited} & {*words}

    def shown(self, known: Sequence[str], number: str) -> str:
        """Return the text that asks for a new prompt behind known ones, other ones for each `number`."""
        picked = random.Random(f"{self.seed} {number}").sample(known, min(self.shots, len(known)))
        tasks = [f"Task {i}: {' '.join(text.split())}" for i, text in enumerate(picked, 1)]
        return "\n\n".join([HEAD, *tasks, f"Task {len(picked) + 1}:"])

    def _written(
        self, folder: Path, policy: Policy, known: Sequence[str], count: int, attempt: int, watch: Any
    ) -> Iterator[str]:
        sampling = self._sampling(attempt)
        asked = Objects([{"prompt": self.shown(known, f"{policy.name} {attempt} {i}")} for i in range(count)])
        prompts = read_prompts(asked, policy.reader(sampling)).found
        file = ResponseFile(folder / f"{attempt}.jsonl", policy, prompts, sampling)
        with watch(policy.name, file.total, len(file.done())) as tell:
            for one in file.complete(lambda some: tell(len(some))):
                if one.finished is not False or NEXT.search(one.response):  # or its end is missing
                    yield written(one.response)

    def _sampling(self, attempt: int) -> Sampling:
        how = (self.temperature, self.top_p)
        return Sampling(*how, max_new_tokens=self.max_new_tokens, seed=self.seed * self.attempts + attempt)


def written(answer: str) -> str:
    r"""Return the new prompt in an answer: up to where the next one begins, without its number.

    Examples:
        >>> written(" Name three rivers.\n\nTask 10: Add two numbers.")
        'Name three rivers.'
        >>> written("Task 9: Name three rivers.")
        'Name three rivers.'
    """
    return NEXT.split(re.sub(r"^\s*Task \d+:", "", answer))[0].strip()


class _Different:
    """Keeps texts that differ from all others.

    ROUGE-L is at most what the words in common, in whatever order, would give: most texts need nothing else.
    """

    def __init__(self, known: Sequence[str], most: float) -> None:
        self._all, self._most, self.new = [(text, _counted(text)) for text in known], most, list[str]()

    def add(self, text: str) -> None:
        words = _counted(text)
        for other, theirs in self._all:
            most = 2 * (words & theirs).total() / max(words.total() + theirs.total(), 1)
            if most >= self._most and rouge_l(text, other) >= self._most:
                return
        self._all.append((text, words))
        self.new.append(text)


def _counted(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.lower()))
