"""The embedded task: instructions, responses of mixed quality, and an exact gold reward.

An instruction asks for a text about a subject with an attribute ("Describe a cold river."). The gold reward of a
response sums four features of its text: is it about the subject, is it consistent with the attribute, does it repeat
itself, how long is it. Pairs are labelled by Bradley-Terry on that reward.
"""

import math
import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lit_tr.data.example import Row
from lit_tr.data.formats import Conversion, explicit_prompt
from lit_tr.data.rows.source import Source, hash_of
from lit_tr.errors import UserError

SUBJECTS = (
    *("river", "forest", "castle", "garden", "market", "village", "harbor", "tower", "bridge", "island", "valley"),
    *("desert", "kitchen", "library", "train", "ship", "horse", "wolf", "violin", "lantern", "storm", "meadow"),
    *("tunnel", "museum"),
)

OPPOSITES = (
    (("cold", "icy", "frozen", "chilly"), ("hot", "burning", "warm", "sunny")),
    (("quiet", "silent", "calm", "hushed"), ("loud", "noisy", "roaring", "booming")),
    (("old", "ancient", "worn", "aged"), ("new", "modern", "fresh", "recent")),
    (("big", "huge", "giant", "vast"), ("small", "tiny", "little", "narrow")),
    (("bright", "shining", "radiant", "glowing"), ("dark", "dim", "gloomy", "shadowy")),
    (("clean", "spotless", "tidy", "polished"), ("dirty", "dusty", "muddy", "stained")),
    (("rich", "golden", "lavish", "grand"), ("poor", "plain", "bare", "humble")),
    (("fast", "swift", "rapid", "quick"), ("slow", "sleepy", "lazy", "still")),
)
"""Attributes in opposite pairs: the first word of each side is asked for, all four of a side are consistent with it."""

INSTRUCTIONS = ("Describe a {} {}.", "Tell me about a {} {}.", "Write about a {} {}.", "What is a {} {} like?")
SENTENCES = ("The {subject} is {word}.", "It looks {word} and {other}.", "It seems {word}.", "People call it {word}.")

ATTRIBUTE_WORDS = {word for pair in OPPOSITES for side in pair for word in side}
SIDES = {side[0]: (side, opposite) for pair in OPPOSITES for side, opposite in (pair, pair[::-1])}


@dataclass(frozen=True)
class Features:
    """The features of a response that its gold reward sums.

    Args:
        subject: 1 if the asked subject is named and no other is, -1 if another is named, 0 if none is.
        attribute: share of consistent words less share of opposite words, among the words of any attribute, in
            [-1, 1].
        repetition: share of sentences that repeat an earlier one, in [0, 1).
        length: how far the number of words is outside of 8 to 16, as a share of 12, at most 1.
    """

    subject: int
    attribute: float
    repetition: float
    length: float

    @classmethod
    def of(cls, instruction: str, response: str) -> "Features":
        """Return the features of a response; an instruction that is not one of this task is a `UserError`."""
        asked, (consistent, opposite) = _asked(instruction)
        words = re.findall(r"[a-z]+", response.lower())
        sentences = [
            " ".join(sentence.split()) for sentence in re.split(r"[.!?]", response.lower()) if sentence.strip()
        ]
        subjects = {word for word in words if word in SUBJECTS}
        score = sum((word in consistent) - (word in opposite) for word in words)
        mentioned = sum(word in ATTRIBUTE_WORDS for word in words)
        return cls(
            subject=1 if subjects == {asked} else -1 if subjects else 0,
            attribute=score / max(mentioned, 1),
            repetition=(len(sentences) - len(set(sentences))) / max(len(sentences), 1),
            length=min(max(8 - len(words), len(words) - 16, 0) / 12, 1.0),
        )


@dataclass(frozen=True)
class GoldReward:
    """The known reward of a response: a weighted sum of its `Features`, in (-9, 4] by default.

    Args:
        subject: weight of naming the asked subject and no other.
        attribute: weight of words that fit the asked attribute.
        repetition: weight of repeated sentences.
        length: weight of being shorter than 8 or longer than 16 words.

    Examples:
        >>> GoldReward()("Describe a cold river.", "The river is icy. It looks cold and frozen.")
        4.0
        >>> GoldReward()("Describe a cold river.", "The castle is hot. The castle is hot.")
        -5.5
    """

    subject: float = 2.0
    attribute: float = 2.0
    repetition: float = -3.0
    length: float = -2.0

    def __call__(self, instruction: str, response: str) -> float:
        """Return the reward of a response to an instruction of this task."""
        features = Features.of(instruction, response)
        return sum(getattr(self, name) * value for name, value in vars(features).items())


@dataclass(frozen=True)
class SyntheticPairs(Source):
    """Seeded pairs of the embedded task: `{"prompt", "chosen", "rejected"}`.

    Two responses of the same generator are drawn for an instruction; the first is preferred with probability
    `sigmoid((reward_1 - reward_2) / temperature)` (Bradley and Terry 1952).

    Args:
        size: how many pairs.
        seed: seed of the generator; rows of different seeds are independent draws.
        temperature: noise of the labels, in units of the gold reward; 0 always prefers the better one.
        held_out: draw from the fifth of the instructions that is held out of training; False draws from the others.
        flipped: share of the pairs, at random, whose chosen and rejected response change places; the pairs are those
            of 0 else.

    Raises:
        UserError: size is below 1, temperature negative, or flipped no share.
    """

    size: int = 2000
    seed: int = 0
    temperature: float = 1.0
    held_out: bool = False
    flipped: float = 0.0

    def __post_init__(self) -> None:
        if self.size < 1 or self.temperature < 0 or not 0 <= self.flipped <= 1:
            raise UserError(f"{self}: size must be at least 1, temperature not negative, flipped from 0 to 1")

    @property
    def conversion(self) -> Conversion:  # type: ignore[override]
        """Plain text: the embedded model knows no chat."""
        return Conversion(explicit_prompt, chat=False)

    def fingerprint(self) -> str | None:
        """Return a hash of the options and of this file."""
        return hash_of(self.conversion, vars(self), Path(__file__).read_text())

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Yield the pairs."""
        draw, flips, reward = random.Random(self.seed), random.Random(f"flips of {self.seed}"), GoldReward()
        for number in range(self.size):
            instruction = sample_instruction(draw, self.held_out)
            first = second = sample_response(instruction, draw)
            while second == first:
                second = sample_response(instruction, draw)
            margin = reward(instruction, first) - reward(instruction, second)
            if (draw.random() > _sigmoid(margin, self.temperature)) != (flips.random() < self.flipped):
                first, second = second, first
            row = {"prompt": instruction, "chosen": first, "rejected": second}
            yield f"synthetic pairs of seed {self.seed}, row {number}", row


def sample_instruction(draw: random.Random, held_out: bool | None = None) -> str:
    """Draw an instruction: a held-out one, another one, or by default any."""
    while True:
        template, attribute, subject = draw.choice(INSTRUCTIONS), draw.choice(list(SIDES)), draw.choice(SUBJECTS)
        is_held_out = zlib.crc32(f"{attribute} {subject}".encode()) % 5 == 0
        if held_out is None or held_out == is_held_out:
            return template.format(attribute, subject)


def sample_response(instruction: str, draw: random.Random) -> str:
    """Draw a response of mixed quality: some are off the subject, contrary to the attribute, or repeat themselves."""
    asked, sides = _asked(instruction)
    subject = asked if draw.random() < 0.65 else draw.choice(SUBJECTS)
    consistency = draw.choice((0.2, 0.5, 0.8))
    sentences: list[str] = []
    for _ in range(draw.randint(1, 6)):
        if sentences and draw.random() < 0.25:
            sentences.append(draw.choice(sentences))
        else:
            side = sides[draw.random() > consistency]
            word, other = draw.sample(side, 2)
            sentences.append(draw.choice(SENTENCES).format(subject=subject, word=word, other=other))
    return " " + " ".join(sentences)


def _sigmoid(margin: float, temperature: float) -> float:
    if temperature == 0:
        return float(margin >= 0)
    return (1 + math.tanh(margin / temperature / 2)) / 2


def _asked(instruction: str) -> tuple[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    words = re.findall(r"[a-z]+", instruction.lower())
    subject = next((word for word in words if word in SUBJECTS), None)
    sides = next((SIDES[word] for word in words if word in SIDES), None)
    if subject is None or sides is None:
        raise UserError(f"{instruction!r} is no instruction of the embedded task")
    return subject, sides
