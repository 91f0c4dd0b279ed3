"""Rows with a prompt and no response: what is to be answered."""

from lit_tr.data.example import Example, Row, Text
from lit_tr.data.formats.fields import example, items, messages, text_or_messages
from lit_tr.data.formats.pairs import alpaca_prompt
from lit_tr.errors import BadRowError

PROMPT_COLUMNS = ("prompt", "messages", "conversations", "instruction", "question", "turns", "input", "text")
"""Columns that may hold a prompt; the first that a row has is taken."""

NO_PROMPT = f"no column holds a prompt, such as {', '.join(PROMPT_COLUMNS)}"


def prompt_alone(row: Row) -> Example:
    r"""A prompt, as text or messages; the chosen response is empty.

    The `turns` of Arena-Hard and MT-Bench are those of the user; a row with several is refused, for the later ones ask
    about answers that it has not.

    Raises:
        BadRowError: the row has no prompt.

    Examples:
        >>> prompt_alone({"instruction": "Add.", "input": "1 + 1"}).prompt
        'Add.\n1 + 1'
        >>> prompt_alone({"turns": [{"content": "Hello?"}]}).prompt
        'Hello?'
    """
    column = next((name for name in PROMPT_COLUMNS if row.get(name) is not None), None)
    if column is None:
        raise BadRowError(NO_PROMPT, f"there are {', '.join(sorted(map(str, row))) or 'none'}")
    return example(row, _prompt(row, column), "", None)


def _prompt(row: Row, column: str) -> Text:
    if column == "instruction":
        return alpaca_prompt(row)
    if column == "turns":
        return _only_turn(row)
    if column not in ("messages", "conversations"):
        return text_or_messages(row, column, "prompt")
    chat = messages(row, column, "prompt")
    if chat[-1]["role"] == "assistant":
        raise BadRowError("the chat ends with the assistant, so nothing is left to answer")
    return chat


def _only_turn(row: Row) -> Text:
    turns = items(row, "turns", object)
    if len(turns) != 1:
        raise BadRowError("several turns of the user without the answers between them", f"{len(turns)} turns")
    content = turns[0].get("content") if isinstance(turns[0], dict) else turns[0]
    if not isinstance(content, str):
        raise BadRowError("a turn is not text", repr(content)[:80])
    return content
