"""Formats of rows with a prompt, a chosen and a rejected response; one function per format.

Each of the three is text or chat messages. A `system` column beside them is the system prompt, `tools` and
`chat_template_kwargs` go to the chat template, and the difference of columns such as `score_chosen` and
`score_rejected` is the margin; accuracies are printed for each `subset`. A row that does not fit raises `BadRowError`.
"""

from lit_tr.data.example import Example, Message, Row, Text, message
from lit_tr.data.formats.chats import begins_with_an_answer, split, split_last, whole
from lit_tr.data.formats.fields import example, messages, parsed, string, text_or_messages, value_of
from lit_tr.data.formats.hints import likely
from lit_tr.errors import BadRowError

HH_TURN = "\n\nAssistant:"
HUMAN = "Human:"


def explicit_prompt(row: Row, prompt: str = "prompt", chosen: str = "chosen", rejected: str = "rejected") -> Example:
    """A prompt and two responses, each as text or messages (TRL, HuggingFaceH4/ultrafeedback_binarized).

    Responses that are whole chats or dialogues, the prompt with them, are split where they begin to differ.

    Args:
        row: the row.
        prompt: name of the column.
        chosen: name of the column.
        rejected: name of the column.

    Raises:
        BadRowError: the row does not fit.

    Examples:
        >>> found = explicit_prompt({"prompt": "Hello?", "chosen": " Hi!", "rejected": " What?"})
        >>> found.prompt, found.chosen, found.rejected
        ('Hello?', ' Hi!', ' What?')
    """
    return _pair(row, text_or_messages(row, prompt, "prompt"), chosen, rejected)


def implicit_prompt(row: Row, chosen: str = "chosen", rejected: str = "rejected") -> Example:
    r"""Two dialogues or chats that begin with the same prompt (Anthropic/hh-rlhf, trl-lib/ultrafeedback_binarized).

    In text the response is what the assistant says after the last turn of the human, in one turn or several; the
    prompt is everything before, and must be the same in both. A response of white space only is kept: some were
    preferred. In messages the prompt is what stands at the start of both.

    Args:
        row: the row.
        chosen: name of the column.
        rejected: name of the column.

    Raises:
        BadRowError: the row does not fit, such as two dialogues with different prompts.

    Examples:
        >>> asked = "\n\nHuman: Hello?\n\nAssistant:"
        >>> found = implicit_prompt({"chosen": asked + " Hi!", "rejected": asked + " What?"})
        >>> found.prompt == asked, found.chosen, found.rejected
        (True, ' Hi!', ' What?')
    """
    if isinstance(value_of(row, chosen), str):
        return _dialogues(row, chosen, rejected)
    one, other = messages(row, chosen), messages(row, rejected)
    if begins_with_an_answer(one) and begins_with_an_answer(other):
        raise BadRowError("chosen and rejected do not share a prompt", _prompt_line(row, chosen, rejected))
    return example(row, *split(one, other))


def orca_pairs(row: Row) -> Example:
    """A question and two answers, with the system prompt (Intel/orca_dpo_pairs)."""
    return explicit_prompt(row, prompt="question")


def distilabel_pairs(row: Row) -> Example:
    """An input and two answers, with the system prompt (argilla/distilabel-intel-orca-dpo-pairs)."""
    return explicit_prompt(row, prompt="input")


def alpaca_pairs(row: Row) -> Example:
    """An instruction, its `input`, earlier turns in `history`, and two answers (LLaMA-Factory's Alpaca pairs)."""
    return _pair(row, alpaca_prompt(row), "chosen", "rejected")


def sharegpt(row: Row) -> Example:
    """Turns with `from` and `value`, and two answers (LLaMA-Factory's ShareGPT pairs)."""
    return explicit_prompt(row, prompt="conversations")


def axolotl_pairs(row: Row) -> Example:
    """Messages, and two answers as a message each (Axolotl's chat_template.default)."""
    return explicit_prompt(row, prompt="messages")


def swift_pairs(row: Row) -> Example:
    """Messages that end with the chosen answer, and the rejected one (ms-swift's files for DPO)."""
    prompt, chosen = split_last(messages(row, "messages", "prompt"))
    rejected = text_or_messages(row, "rejected_response", "response")
    return example(row, prompt, chosen, [message("assistant", rejected)] if isinstance(rejected, str) else rejected)


def message_pairs(row: Row) -> Example:
    """Two chats with the same first messages, which are the prompt, or a `prompt` and two answers."""
    columns = {"chosen": "chosen_messages", "rejected": "rejected_messages"}
    return implicit_prompt(row, **columns) if row.get("prompt") is None else explicit_prompt(row, **columns)


def argilla_pairs(row: Row) -> Example:
    """An instruction and two answers with their ratings (argilla/ultrafeedback-binarized-preferences)."""
    return explicit_prompt(row, "instruction", "chosen_response", "rejected_response")


def accepted_pairs(row: Row) -> Example:
    """A prompt or question, the accepted and the rejected answer."""
    return explicit_prompt(row, "prompt" if row.get("prompt") is not None else "question", "accepted")


def stack_exchange(row: Row) -> Example:
    """A question and two answers, the first of them with more votes (lvwerra/stack-exchange-paired)."""
    return explicit_prompt(row, "question", "response_j", "response_k")


def openai_pairs(row: Row) -> Example:
    """Messages with tools, and two answers (files of OpenAI's, Together's and Fireworks' preference fine-tuning)."""
    asked = parsed(row, "input", dict)
    inner = {**asked, **{key: value_of(row, key) for key in ("preferred_output", "non_preferred_output")}}
    return explicit_prompt(inner, "messages", "preferred_output", "non_preferred_output")


def alpaca_prompt(row: Row) -> Text:
    """Return the instruction of an Alpaca row with its input, behind the turns of its history."""
    further = string(row, "input") if row.get("input") else ""
    text = string(row, "instruction") + (f"\n{further}" if further.strip() else "")
    history = parsed(row, "history", list) if row.get("history") else []
    if not history:
        return text
    turns: list[Message] = []
    for turn in history:
        if not (isinstance(turn, list) and len(turn) == 2 and all(isinstance(said, str) for said in turn)):
            raise BadRowError("'history' is not a list of questions with answers", repr(turn)[:80])
        turns += [message("user", turn[0]), message("assistant", turn[1])]
    return [*turns, message("user", text)]


def _pair(row: Row, prompt: Text, chosen: str, rejected: str) -> Example:
    one, other = (text_or_messages(row, key, "response") for key in (chosen, rejected))
    if isinstance(one, str) and isinstance(other, str) and isinstance(prompt, str):
        return _of_texts(row, prompt, chosen, rejected)
    one, other = (text if isinstance(text, list) else [message("assistant", text)] for text in (one, other))
    if begins_with_an_answer(one) and begins_with_an_answer(other):
        return example(row, prompt if isinstance(prompt, list) else [message("user", prompt)], one, other)
    if isinstance(prompt, list):
        return example(row, *split(whole(prompt, one), whole(prompt, other)))
    asked, one, other = split(one, other)
    if not any(prompt.strip() in said["content"] for said in asked if said.get("content")):
        raise BadRowError(
            "the prompt is not in the chats of the responses",
            "lit_tr.data.formats.implicit_prompt, named as format, takes the prompt from the chats alone",
        )
    return example(row, asked, one, other)


def _of_texts(row: Row, prompt: str, chosen: str, rejected: str) -> Example:
    one, other = row[chosen], row[rejected]
    if all(text.startswith(f"\n\n{HUMAN}") and HH_TURN in text for text in (one, other)):
        return _dialogues(row, chosen, rejected)
    if prompt.endswith(HH_TURN) and one.startswith(prompt) and other.startswith(prompt):
        one, other = one[len(prompt) :], other[len(prompt) :]
    return example(row, prompt, one, other)


def _dialogues(row: Row, chosen: str, rejected: str) -> Example:
    if not any(HH_TURN in string(row, key) for key in (chosen, rejected)):
        raise BadRowError(
            f"there is no prompt, and no {HH_TURN!r} in the responses", _prompt_line(row, chosen, rejected)
        )
    (prompt, one), (other_prompt, other) = (_split_dialogue(row, key) for key in (chosen, rejected))
    if prompt != other_prompt:
        raise BadRowError("chosen and rejected do not share a prompt")
    return example(row, prompt, one, other)


def _prompt_line(row: Row, *others: str) -> str:
    column = likely([str(key) for key in row if key not in others], "prompt")
    return f"`columns: {{prompt: {column}}}` names its column" if column else ""


def _split_dialogue(row: Row, key: str) -> tuple[str, str]:
    dialogue = string(row, key)
    *before, answer = dialogue.split(HH_TURN)
    if not before:
        raise BadRowError(f"{key!r} has no {HH_TURN!r}, so its prompt cannot be found")
    while len(before) > 1 and HUMAN not in before[-1]:  # the assistant's turns that follow each other
        answer = before.pop() + HH_TURN + answer
    if not answer:
        raise BadRowError(f"{key!r} is an empty response")
    return HH_TURN.join(before) + HH_TURN, answer
