"""How near two texts are: by TF-IDF, or by the embeddings of a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import torch

from lit_tr.errors import UserError, explained
from lit_tr.rewards.models import by_length, load_tokenizer, loaded
from lit_tr.rewards.pooling import Pooling, pooling_of

WORD = r"\w+"


class Encoder(Protocol):
    """Makes vectors of texts."""

    def fit(self, texts: Sequence[str]) -> None:
        """Take the statistics of a sample from now on."""

    def state(self) -> Any:
        """Return these as plain data; None if there are none."""

    def restore(self, state: Any) -> None:
        """Take what `state` returned."""

    def __call__(self, texts: Sequence[str]) -> Any:
        """Return the vectors, `(texts, size)`, an array of numpy or a sparse one of scipy."""


class TfIdf:
    """Vectors of words, weighted by how rare they are, of length 1 (scikit-learn's `TfidfVectorizer`).

    Raises:
        UserError: scikit-learn is not installed; or, when it is fitted, there are no words.
    """

    def __init__(self) -> None:
        self._fitted: Any = None
        try:
            import sklearn.feature_extraction.text as sklearn
        except ModuleNotFoundError as error:
            raise UserError("TF-IDF needs scikit-learn: pip install 'lit-tr[evaluation]'; or give encoder") from error
        self._kind = sklearn.TfidfVectorizer

    def fit(self, texts: Sequence[str]) -> None:
        """Count the words of a sample, those of a repeated text once."""
        self._fitted = self._of([*dict.fromkeys(texts)])

    def state(self) -> Any:
        """Return words and weights."""
        made = self._fitted
        return made and {"words": made.get_feature_names_out().tolist(), "idf": made.idf_.tolist()}

    def restore(self, state: Any) -> None:
        """Take words and weights."""
        self._fitted = self._kind(token_pattern=WORD, vocabulary=state["words"])
        self._fitted.idf_ = np.array(state["idf"])

    def __call__(self, texts: Sequence[str]) -> Any:
        """Return the vectors; of an encoder that is not fitted, those of these texts among themselves."""
        from scipy.sparse import csr_array

        return csr_array((self._fitted or self._of(texts)).transform(texts))

    def _of(self, texts: Sequence[str]) -> Any:
        with explained("TF-IDF: there are no words in prompts and responses", ValueError):
            return self._kind(token_pattern=WORD).fit(texts)


@dataclass
class Pooled:
    """Vectors of the last hidden states of a model of transformers: their mean over the tokens of a text.

    One of sentence-transformers pools as its files say, by mean, maximum, first or last token, normalized or not. Of a
    text that is too long the beginning is left out.

    Args:
        path: a folder or hub id.
        device: where it runs; None takes a GPU if there is one.
        batch_size: texts that are computed at once.

    Raises:
        UserError: the model cannot be loaded, or has modules that are not computed, such as Dense.
    """

    path: str
    device: str | None = None
    batch_size: int = 32

    def fit(self, texts: Sequence[str]) -> None:
        """Do nothing: there is nothing to fit."""

    def state(self) -> Any:
        """Return the path."""
        return {"encoder": self.path}

    def restore(self, state: Any) -> None:
        """Check that the path is the same."""
        if state["encoder"] != self.path:
            raise UserError(f"encoder {self.path}: the statistics are of {state['encoder']}")

    def __call__(self, texts: Sequence[str]) -> Any:
        """Return the vectors; zeros of a text without tokens."""
        ids = self.tokenizer(list(texts), truncation=self._longest is not None, max_length=self._longest)["input_ids"]
        vectors = np.zeros((len(ids), self.model.config.hidden_size))
        known = [number for number, one in enumerate(ids) if one]
        for batch in by_length(known, [len(ids[number]) for number in known], self.batch_size):
            vectors[batch] = self._pooled([ids[number] for number in batch])
        return vectors

    def _pooled(self, ids: list[list[int]]) -> np.ndarray:
        encoded = self.tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(self.model.device)
        mask = encoded["attention_mask"][..., None]
        with torch.no_grad():
            hidden = self.model(**encoded).last_hidden_state.float()
        return self.pooling(hidden, mask).double().cpu().numpy()

    @property
    def _longest(self) -> int | None:
        given = (self.tokenizer.model_max_length, getattr(self.model.config, "max_position_embeddings", None))
        return min((one for one in given if one and one < 2**31), default=None)

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer, which pads on the right and truncates on the left."""
        tokenizer = load_tokenizer(self.path, "right")
        tokenizer.truncation_side = "left"
        return tokenizer

    @cached_property
    def pooling(self) -> Pooling:
        """How hidden states become vectors."""
        return pooling_of(self.path)

    @cached_property
    def model(self) -> Any:
        """The model, in evaluation mode."""
        from transformers import AutoModel

        return loaded(AutoModel, self.path, self.device, "auto")


def encoder_of(path: str | None, device: str | None, batch_size: int) -> Encoder:
    """Return the encoder of a folder or hub id, and without one TF-IDF."""
    return TfIdf() if path is None else Pooled(path, device, batch_size)


def similarities(encoder: Encoder, pairs: Sequence[tuple[str, str]], cosine: bool) -> list[float]:
    """Return the dot product of the vectors of each two texts.

    Args:
        encoder: makes the vectors; each text is encoded once.
        pairs: the texts.
        cosine: divide by the vectors' lengths: then it is in [-1, 1], and 0 where one is zero.
    """
    if not pairs:
        return []
    at = {text: number for number, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}
    vectors = encoder(list(at))
    left, right = (vectors[[at[pair[side]] for pair in pairs]] for side in (0, 1))
    dots = (left * right).sum(axis=1)
    if cosine:
        sizes = np.sqrt((left * left).sum(axis=1) * (right * right).sum(axis=1))
        dots = np.divide(dots, sizes, out=np.zeros_like(dots), where=sizes > 0)
    return dots.tolist()
