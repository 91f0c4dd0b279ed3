"""Weights that let undesirable rows have the prompts of desirable ones."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import blake2b
from itertools import islice
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_info
from numpy.typing import NDArray
from torch import Tensor

from lit_tr.data.example import Example, Row, Text
from lit_tr.data.formats.conversion import Conversion
from lit_tr.data.rows.memory import as_source
from lit_tr.data.rows.source import Cursor, Record, Source, hash_of
from lit_tr.embedded.model import resolve
from lit_tr.errors import BadRowError, UserError, explained

AT_A_TIME = 64
"""Prompts that an encoder embeds at a time."""
BLOCK = 1024
"""Prompts whose weights are computed at a time."""
MOST_TOKENS = 512
"""Of a prompt that is embedded; what is beyond is left out."""


@dataclass(frozen=True)
class DistributionMatching(Source):
    """Rows of a source, the undesirable ones with a label `weight` by their prompts, which `BCO` reads.

    Underlying distribution matching of BCO (Jung et al. 2024, arXiv 2404.04656v1): where users like answers
    to other prompts than those whose answers they dislike, the loss of an undesirable row is weighed by the ratio of
    the two densities of prompts, `p / (1 - p)`. `p` is the probability that a prompt is one of a desirable row, of a
    logistic regression (scikit-learn's, both sides weighing alike) on embeddings of sampled prompts. The weight of a
    desirable row is 1. A pair is a row of both kinds.

    All rows are read before the first one is trained on, so it is no stream. The weights are part of the token cache:
    they are computed once, by one rank of each node. As TRL's `BCOTrainer` did, but for a sample that is drawn once,
    with a seed and no row twice, where TRL fits one classifier on each rank.

    Args:
        source: the rows; whatever `as_source` takes.
        encoder: folder or hub id of a Hugging Face model whose last hidden states, a mean over the tokens of a prompt
            and normalized, are the embeddings; it is known by this name alone. None takes TF-IDF of the words.
        sample: most prompts of either kind that the classifier is fitted on.
        ratios: the least and the largest weight.
        seed: seed of the sample.

    Raises:
        UserError: an argument is not in its range.
    """

    source: Source
    encoder: str | None = None
    sample: int = 1024
    ratios: tuple[float, float] = (0.5, 10.0)
    seed: int = 0

    streams = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", as_source(self.source))
        if self.sample < 1 or not 0 < self.ratios[0] <= self.ratios[1]:
            raise UserError(
                f"DistributionMatching: sample {self.sample} must be at least 1, and ratios {self.ratios} two numbers "
                "above 0, the first one not higher"
            )

    def __str__(self) -> str:
        """Return the source."""
        return str(self.source)

    @property
    def conversion(self) -> Conversion:  # type: ignore[override]
        """That of the source."""
        return self.source.conversion

    def records(self, order: int | None = None, state: Any = None) -> Cursor:
        """Return a cursor over the source's records.

        Raises:
            UserError: the rows are all desirable, or all undesirable; or what the weights are made with is not there.
        """
        return _WeighingCursor(self.source.records(order, state), self._weights)

    def fingerprint(self) -> str | None:
        """Return a hash of the source's own and of the arguments; None where it has none."""
        own = self.source.fingerprint()
        decisive = (own, self.encoder, self.sample, self.ratios, self.seed)
        return None if own is None else hash_of(self.conversion, "DistributionMatching", *decisive)

    @cached_property
    def _weights(self) -> dict[bytes, float]:
        """The weight of each prompt of an undesirable row, by `_key`."""
        desirable, undesirable = self._sampled()
        ratio = _density_ratio(desirable, undesirable, self.encoder)
        weights: dict[bytes, float] = {}
        prompts = (text for text, (_, is_undesirable) in self._prompts() if is_undesirable)
        while texts := list(islice(prompts, BLOCK)):
            weights |= zip(map(_key, texts), ratio(texts).clip(*self.ratios).tolist(), strict=True)
        values = list(weights.values())
        rank_zero_info(
            f"{self}: weights of undesirable rows by their prompts: {min(values):.2f} to {max(values):.2f}, "
            f"mean {np.mean(values):.2f}"
        )
        return weights

    def _sampled(self) -> tuple[list[str], list[str]]:
        """Return a sample of the prompts of desirable and of undesirable rows, each prompt as often as it occurs.

        Raises:
            UserError: there are none of a kind.
        """
        draw, seen, sampled = Random(self.seed), [0, 0], ([], [])  # type: ignore[var-annotated]
        for text, is_of in self._prompts():
            for kind in (kind for kind in (0, 1) if is_of[kind]):
                seen[kind] += 1
                if len(sampled[kind]) < self.sample:
                    sampled[kind].append(text)
                elif (at := draw.randrange(seen[kind])) < self.sample:
                    sampled[kind][at] = text
        for name, texts in zip(("desirable", "undesirable"), sampled, strict=True):
            if not texts:
                raise UserError(
                    f"DistributionMatching: {self} has no {name} rows, so there are no two distributions of prompts: "
                    "leave it out"
                )
        return sampled

    def _prompts(self) -> Iterator[tuple[str, tuple[bool, bool]]]:
        """Yield the prompt of each example, and whether it has a desirable and an undesirable response."""
        for location, row, conversion in self.source.records():
            try:
                examples = conversion(row) if isinstance(row, Mapping) else []
            except BadRowError:
                continue  # it is counted where it is tokenized
            except UserError as error:
                raise UserError(f"{location}: {error}") from error
            for one in examples:
                yield _text(one.prompt), (one.chosen is not None, one.rejected is not None)


class _WeighingCursor(Cursor):
    def __init__(self, cursor: Cursor, weights: Mapping[bytes, float]) -> None:
        self._cursor, self._weights = cursor, weights

    def __next__(self) -> Record:
        location, row, own = next(self._cursor)
        return Record(location, row, _WeighingConversion(own.format, own.columns, own.chat, self._weights))

    def skip(self, count: int) -> int:
        return self._cursor.skip(count)

    def state(self) -> Any:
        return self._cursor.state()


@dataclass(frozen=True)
class _WeighingConversion(Conversion):
    weights: Mapping[bytes, float] = field(default_factory=dict)

    def convert(self, row: Row) -> tuple[list[Example], frozenset[str]]:
        examples, unread = super().convert(row)
        return [one if one.rejected is None else self._weighed(one) for one in examples], unread

    def _weighed(self, example: Example) -> Example:
        weight = self.weights.get(_key(_text(example.prompt)))
        if weight is None:
            raise UserError("DistributionMatching: the rows of its source must be the same each time they are read")
        return replace(example, labels={**example.labels, "weight": (1.0, weight)})


def _text(prompt: Text) -> str:
    return prompt if isinstance(prompt, str) else "\n".join(str(one.get("content", "")) for one in prompt)


def _key(text: str) -> bytes:
    return blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()


def _density_ratio(desirable: list[str], undesirable: list[str], encoder: str | None) -> Callable[[list[str]], NDArray]:
    """Return a function from prompts to how much denser desirable ones are there than undesirable ones, `(prompts,)`.

    Raises:
        UserError: scikit-learn is not installed, there is no such encoder, or the prompts have no words.
    """
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise UserError("DistributionMatching needs scikit-learn: pip install 'lit-tr[matching]'") from error
    texts, labels = desirable + undesirable, [1] * len(desirable) + [0] * len(undesirable)
    if encoder is None:
        with explained("DistributionMatching: the prompts have no words for TF-IDF: name an encoder", ValueError):
            embed = TfidfVectorizer().fit(texts).transform
    else:
        embed = _embedder(encoder)
    classifier = LogisticRegression(class_weight="balanced", max_iter=1000).fit(embed(texts), labels)
    return lambda given: np.exp(classifier.decision_function(embed(given)))  # p / (1 - p)


def _embedder(path: str) -> Callable[[list[str]], NDArray[Any]]:
    """Return a function from texts to their embeddings by an encoder, `(texts, hidden)`."""
    from transformers import AutoModel, AutoTokenizer

    with explained(f"DistributionMatching: {path}: no encoder in this folder or on the hub", OSError, ValueError):
        found = resolve(path)
        tokenizer, model = AutoTokenizer.from_pretrained(found), AutoModel.from_pretrained(found)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    tokenizer.pad_token, tokenizer.padding_side = tokenizer.pad_token or tokenizer.eos_token, "right"

    def means(texts: list[str]) -> Tensor:
        options = {"padding": True, "truncation": True, "max_length": MOST_TOKENS, "return_tensors": "pt"}
        inputs = tokenizer(texts, **options).to(model.device)
        mask = inputs["attention_mask"][..., None]
        return (model(**inputs).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1)

    @torch.no_grad()
    def embed(texts: list[str]) -> NDArray[Any]:
        parts = [means(texts[at : at + AT_A_TIME]) for at in range(0, len(texts), AT_A_TIME)]
        return F.normalize(torch.cat(parts).float()).cpu().numpy()

    return embed
