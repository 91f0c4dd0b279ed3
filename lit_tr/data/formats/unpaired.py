"""Formats of rows with one response: labelled as desirable or not, for KTO, or to be learned, for SFT.

A row without a label is a desirable example: it has a chosen response and no rejected one.
"""

from lit_tr.data.example import Example, Row, Text, message
from lit_tr.data.formats.chats import begins_with_an_answer, split_last, whole
from lit_tr.data.formats.fields import example, messages, text_or_messages, truth
from lit_tr.data.formats.pairs import alpaca_prompt


def unpaired(row: Row) -> Example:
    """A prompt and a completion, each text or messages, and whether it is a good one (TRL's KTO, every CSV).

    Raises:
        BadRowError: the row does not fit.

    Examples:
        >>> found = unpaired({"prompt": "Hello?", "completion": " What?", "label": False})
        >>> found.chosen, found.rejected
        (None, ' What?')
    """
    return _labelled(row, *_answered(row, "prompt", "completion"))


def unpaired_messages(row: Row) -> Example:
    """Messages up to the assistant's last one, and whether it is a good one (LLaMA-Factory's KTO files)."""
    return _labelled(row, *split_last(messages(row, "messages", "prompt")))


def unpaired_sharegpt(row: Row) -> Example:
    """Turns with `from` and `value` up to the last answer, and whether it is a good one (LLaMA-Factory's KTO files)."""
    return _labelled(row, *split_last(messages(row, "conversations", "prompt")))


def unpaired_alpaca(row: Row) -> Example:
    """An instruction with its input and an output, and whether it is a good one (LLaMA-Factory's Alpaca KTO)."""
    return _labelled(row, alpaca_prompt(row), text_or_messages(row, "output", "response"))


def completion(row: Row, prompt: str = "prompt", completion: str = "completion") -> Example:
    """A prompt and a completion to be learned, each text or messages (TRL's SFT).

    Args:
        row: the row.
        prompt: name of the column.
        completion: name of the column.
    """
    return example(row, *_answered(row, prompt, completion), None)


def dialogue(row: Row) -> Example:
    """Messages whose last one of the assistant is to be learned (OpenAI's fine-tuning files, TRL's SFT)."""
    return example(row, *split_last(messages(row, "messages", "prompt")), None)


def sharegpt_dialogue(row: Row) -> Example:
    """Turns with `from` and `value` whose last answer is to be learned (ShareGPT, Open-Orca/SlimOrca)."""
    return example(row, *split_last(messages(row, "conversations", "prompt")), None)


def alpaca(row: Row) -> Example:
    """An instruction with its input, and an output to be learned (tatsu-lab/alpaca)."""
    return example(row, alpaca_prompt(row), text_or_messages(row, "output", "response"), None)


def orca(row: Row) -> Example:
    """A question and a response to be learned, with the system prompt (Open-Orca/OpenOrca)."""
    return completion(row, "question", "response")


def generation(row: Row) -> Example:
    """An instruction, or prompt, and a generation to be learned (distilabel's text generation)."""
    return completion(row, "prompt" if row.get("instruction") is None else "instruction", "generation")


def _answered(row: Row, prompt: str, response: str) -> tuple[Text, Text]:
    asked, answer = text_or_messages(row, prompt, "prompt"), text_or_messages(row, response, "response")
    if isinstance(asked, str) and isinstance(answer, str):
        return asked, answer
    asked = asked if isinstance(asked, list) else [message("user", asked)]
    answer = answer if isinstance(answer, list) else [message("assistant", answer)]
    return (asked, answer) if begins_with_an_answer(answer) else split_last(whole(asked, answer))


def _labelled(row: Row, prompt: Text, response: Text) -> Example:
    label = "label" if row.get("kto_tag") is None else "kto_tag"
    pair = (response, None) if truth(row, label) else (None, response)
    return example(row, prompt, *pair)
