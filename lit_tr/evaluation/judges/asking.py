"""What rewards share that ask a language model."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from lit_tr.errors import UserError
from lit_tr.evaluation.answers import Answers, Asker, LanguageModel
from lit_tr.evaluation.endpoint import Endpoint
from lit_tr.evaluation.judges.local import LocalModel


@dataclass
class LanguageReward:
    """A reward that asks a language model: one of transformers on this machine, or one behind an address.

    Args:
        path: folder or hub id of a model or an adapter; in rounds `{policy}` is the policy that judges itself.
        model: in the place of `path`, the name of a model behind an OpenAI-compatible address.
        url: the address up to `/v1`; None takes OPENAI_BASE_URL, or OpenAI's own.
        cache: file of the answers, so that nothing is asked twice after a stop; None keeps them in memory. In rounds
            `{output}` is their folder.
        device: where a model of `path` runs; None takes a GPU if there is one.
        dtype: precision of its weights; `auto` is that of the files. In 16 bits rounding lets a drawn answer depend on
            what it shares a batch with.
        quantize: `nf4` puts the model of `path`, or the base of an adapter, into 4 bits.
        batch_size: questions that it computes at once.
        concurrency: questions that a server is asked at once.
        key_variable: name of the environment variable that holds the key of the server.

    Raises:
        UserError: there is not one of `path` and `model`, or the server cannot be asked.
    """

    path: str | None = None
    model: str | None = None
    url: str | None = None
    cache: str | None = None
    device: str | None = None
    dtype: str = "auto"
    quantize: Literal["nf4"] | None = None
    batch_size: int = 8
    concurrency: int = 8
    key_variable: str = "OPENAI_API_KEY"

    def __post_init__(self) -> None:
        if (self.path is None) == (self.model is None) or (self.url and self.path):
            raise UserError(f"{type(self).__name__}: give path, or else model with the url of its server")
        self._model  # noqa: B018  (before work starts)

    @property
    def name(self) -> str:
        """The last part of the path, or the name of the model."""
        return self.model or Path(self.path or "").name

    @cached_property
    def asker(self) -> Asker:
        """What asks the model, and keeps its answers."""
        return Asker(self._model, Answers(self.cache))

    @cached_property
    def _model(self) -> LanguageModel:
        if self.path is not None:
            return LocalModel(self.path, self.device, self.dtype, self.batch_size, self.quantize)
        return Endpoint(self.model or "", self.url, self.key_variable, self.concurrency)
