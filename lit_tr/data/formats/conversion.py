"""How the rows of a source become examples."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from lit_tr.data.example import Example, Format, Row
from lit_tr.data.formats.detect import detect
from lit_tr.errors import BadRowError, UserError

Chat = Literal["auto"] | bool


@dataclass(frozen=True)
class Conversion:
    """How the rows of a source become examples.

    Args:
        format: function from a row to one `Example` or several; None detects it from each row's columns.
        columns: the name that a column has in the rows, for each name that the format knows; of what is nested, the
            names on the way to it, with dots: `{prompt: question.full_text}`.
        chat: make chat messages of text; `auto` does where the tokenizer has a chat template.

    Examples:
        >>> convert = Conversion(columns={"prompt": "question.text", "chosen": "right", "rejected": "wrong"})
        >>> [found] = convert({"question": {"text": "1 + 1?"}, "right": " 2", "wrong": " 3"})
        >>> found.prompt, found.chosen
        ('1 + 1?', ' 2')
    """

    format: Format | None = None
    columns: Mapping[str, str] | None = None
    chat: Chat = "auto"

    def __call__(self, row: Row) -> list[Example]:
        """Return the examples of a row: one, or several where its format makes several pairs.

        Raises:
            BadRowError: the row does not fit its format.
            UserError: the format gave something else.
        """
        return self.convert(row)[0]

    def convert(self, row: Row) -> tuple[list[Example], frozenset[str]]:
        """Return the examples of a row, and the columns with a value that the format did not read.

        Raises:
            BadRowError: the row does not fit its format.
            UserError: the format gave something else.
        """
        if not isinstance(row, Mapping):
            raise BadRowError("the row is not an object with columns", type(row).__name__)
        seen = _SeenRow(self._renamed(row) if self.columns else row)
        try:
            found = self.format_of(row)(seen)
        except KeyError as error:  # of a function of the user's own
            raise BadRowError(f"no {str(error)[:80]}") from error
        except RecursionError as error:
            raise BadRowError("the row is nested too deeply") from error
        examples = found if isinstance(found, list) else [found]
        for one in examples:
            if not isinstance(one, Example):
                raise UserError(f"the format gave {type(one).__name__}, and not an Example or a list of them")
        return examples, self._unread(row, seen.seen)

    def format_of(self, row: Row) -> Format:
        """Return the format of a row.

        Raises:
            BadRowError: it is to be detected, and no format has its columns.
        """
        return self.format or detect(self._renamed(row) if self.columns else row)

    def _renamed(self, row: Row) -> dict[str, Any]:
        """Return a row with the format's names in the place of its own."""
        columns = self.columns or {}
        kept = {key: value for key, value in row.items() if key not in columns.values()}
        return kept | {name: _at(row, path) for name, path in columns.items()}

    def _unread(self, row: Row, seen: set[str]) -> frozenset[str]:
        if columns := self.columns:
            paths = [columns.get(name, name) for name in seen]
            seen = {path if path in row else path.split(".")[0] for path in paths}
        return frozenset(name for name, value in row.items() if name not in seen and value not in (None, "", []))


class _SeenRow(dict[str, Any]):
    """A row that remembers which of its columns were read."""

    def __init__(self, row: Row) -> None:
        super().__init__(row)
        self.seen: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.seen.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.seen.add(key)
        return super().get(key, default)

    def pop(self, key: str, *default: Any) -> Any:
        self.seen.add(key)
        return super().pop(key, *default)

    def __iter__(self) -> Iterator[str]:  # of its own, so that `{**row}` and `dict(row)` go by __getitem__
        return super().__iter__()

    def items(self) -> Any:
        self.seen.update(super().keys())
        return super().items()

    def values(self) -> Any:
        self.seen.update(super().keys())
        return super().values()


def _at(row: Row, path: str) -> Any:
    """Return the value of a column, or of what is nested in one."""
    if path in row:
        return row[path]
    value: Any = row
    for name in path.split("."):
        if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        elif isinstance(value, Mapping) and name in value:
            value = value[name]
        else:
            raise BadRowError(
                "a column that `columns` names is missing", f"{path!r}; there are {sorted(map(str, row))}"
            )
    return value
