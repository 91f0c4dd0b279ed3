"""How the rows of a source become examples."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from lit_tr.data.example import Example, Format, Row
from lit_tr.data.formats.detect import detect
from lit_tr.errors import UserError

Chat = Literal["auto"] | bool


@dataclass(frozen=True)
class Conversion:
    """How the rows of a source become examples.

    Args:
        format: function from a row to one `Example` or several; None detects it from each row's columns.
        columns: the name that a column has in the rows, for each name that the format knows.
        chat: make chat messages of text; `auto` does where the tokenizer has a chat template.
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
        found = (self.format or detect(row))(row)
        examples = found if isinstance(found, list) else [found]
        for one in examples:
            if not isinstance(one, Example):
                raise UserError(f"the format gave {type(one).__name__}, and not an Example or a list of them")
        return examples
