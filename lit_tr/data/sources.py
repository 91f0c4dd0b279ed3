"""Where rows come from: files and hub data sets. A source is any subclass of `Source`, named by `class_path`."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError

from lit_tr.data.formats import Row
from lit_tr.errors import UserError

BUILDERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".arrow": "arrow"}


class Source(ABC):
    """Rows of preference data, each with words that say where it stands."""

    @abstractmethod
    def rows(self) -> Iterator[tuple[str, Row]]:
        """Yield `(where, row)`; `where` names the file and the row, for messages.

        Raises:
            UserError: there is no such data, or it cannot be read.
        """


@dataclass(frozen=True)
class Rows(Source):
    """Rows of a file (JSON lines, JSON, Parquet, CSV, Arrow; `.gz` too) or of a data set on the Hugging Face hub.

    Args:
        path: a file, or a hub id such as `Anthropic/hh-rlhf`.
        split: which rows, in the notation of `datasets`: `train`, `test`, `train[200:]`, `train[:10%]`. A file is all
            `train`.
        revision: a commit, tag or branch of the hub's data set.
    """

    path: str
    split: str = "train"
    revision: str | None = None

    def rows(self) -> Iterator[tuple[str, Row]]:
        """Yield the rows of the split; numbers count from 0 within it."""
        for number, row in enumerate(self._load()):
            yield f"{self.path}, split {self.split}, row {number}", row

    def _load(self) -> datasets.Dataset:
        file = Path(self.path)
        try:
            if file.exists():
                return datasets.load_dataset(_builder(file), data_files=str(file), split=self.split)
            return datasets.load_dataset(self.path, split=self.split, revision=self.revision)
        except DatasetGenerationError as error:
            raise UserError(f"{self.path}: cannot be read: {error.__cause__ or error}") from error
        except (DatasetNotFoundError, ConnectionError, FileNotFoundError) as error:
            raise UserError(f"{self.path}: no such file, and no such data set on the hub can be reached") from error
        except ValueError as error:  # an unknown split or revision, or a file that is of another kind than its name
            raise UserError(f"{self.path}, split {self.split}: {error}") from error


def _builder(file: Path) -> str:
    name = file.name.removesuffix(".gz")
    suffix = Path(name).suffix
    if suffix not in BUILDERS:
        raise UserError(
            f"{file}: unknown kind of file {suffix!r}; known are {', '.join(BUILDERS)}, each with .gz or without"
        )
    return BUILDERS[suffix]
