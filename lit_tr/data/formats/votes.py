"""Formats of rows with two responses and a verdict; one function or small class per format.

The winner is the chosen response, and how clearly it won is the margin, where the row says it. In a tie the first
response is the chosen one, with confidence 1/2.
"""

from dataclasses import dataclass
from typing import Literal

from lit_tr.data.example import Example, Message, Row, Text, message
from lit_tr.data.formats.chats import split
from lit_tr.data.formats.fields import (
    example,
    items,
    messages,
    number,
    parsed,
    response,
    string,
    truth,
    value_of,
)
from lit_tr.errors import BadRowError, UserError

WINNERS = {"model_a": 0.0, "model_b": 1.0, "a": 0.0, "b": 1.0}


def tldr(row: Row) -> Example:
    """A Reddit post and two summaries, of which one was chosen (openai/summarize_from_feedback, comparisons).

    The prompt is that of Stiennon et al. 2020 (arXiv 2009.01325).
    """
    info, summaries = parsed(row, "info", dict), items(row, "summaries", dict)
    if len(summaries) != 2 or None in summaries:
        raise BadRowError("'summaries' are not two", repr(summaries)[:80])
    subreddit, title, post = (string(info, key) for key in ("subreddit", "title", "post"))
    first, second = (" " + response(summary, "text").lstrip() for summary in summaries)
    prompt = f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
    return _vote(row, prompt, first, second, _number_of_two(row, "choice"))


def alpaca_eval(row: Row) -> Example:
    """An instruction, two outputs and how a judge compared them (AlpacaEval's annotations).

    The preference is 1 plus the probability that the second output is the better one (AlpacaEval 2), or just 1 or 2; a
    tie is 1.5, or 0. The likelier output is the chosen one, and its probability the confidence.

    Raises:
        BadRowError: the row does not fit.

    Examples:
        >>> row = {"instruction": "1 + 1?", "output_1": "2", "output_2": "3", "preference": 1.25}
        >>> found = alpaca_eval(row)
        >>> found.chosen, found.confidence
        ('2', 0.75)
    """
    preference = number(value_of(row, "preference"))
    if preference is None or not (preference == 0 or 1 <= preference <= 2):
        raise BadRowError("'preference' is not in [1, 2], nor 0", repr(row["preference"])[:80])
    texts = string(row, "instruction"), response(row, "output_1"), response(row, "output_2")
    return _vote(row, *texts, preference - 1 if preference else 0.5)


def shp(row: Row) -> Example:
    """A post and two comments, of which one has more votes (stanfordnlp/SHP, SHP-2)."""
    one, other = number(row.get("score_A")), number(row.get("score_B"))
    margin = 0.0 if one is None or other is None else abs(one - other)
    texts = string(row, "history"), response(row, "human_ref_A"), response(row, "human_ref_B")
    return _vote(row, *texts, 0.0 if truth(row, "labels") else 1.0, margin)


def helpsteer2(row: Row) -> Example:
    """A prompt and two responses, with a preference from -3 to 3 (nvidia/HelpSteer2, preference)."""
    return _vote(
        row, string(row, "prompt"), *_two(row, "response_1", "response_2"), *_strength(row, "preference_strength")
    )


def helpsteer3(row: Row) -> Example:
    """Messages and two responses, with a preference from -3 to 3 (nvidia/HelpSteer3, preference)."""
    one, other = ([message("assistant", text)] for text in _two(row, "response1", "response2"))
    return _vote(row, messages(row, "context", "prompt"), one, other, *_strength(row, "overall_preference"))


def arena(row: Row) -> Example:
    """Two chats that begin with the same question, and the winner (lmsys/chatbot_arena_conversations)."""
    chats = messages(row, "conversation_a"), messages(row, "conversation_b")
    return _vote(row, *split(*chats), _winner(row))


def arena_texts(row: Row) -> Example:
    """A prompt and two responses as text, and the winner (LMArena's competition of 2024)."""
    return _vote(row, string(row, "prompt"), *_two(row, "response_a", "response_b"), _winner(row))


def lmsys_votes(row: Row) -> Example:
    """JSON lists of the turns with two models, and a column for each verdict (LMSYS's competition of 2024)."""
    verdicts = [truth(row, f"winner_{name}") for name in ("model_a", "tie", "model_b")]
    if sum(verdicts) != 1:
        raise BadRowError("not exactly one of the winners is true", str(verdicts))
    asked, one, other = (_turns(row, key) for key in ("prompt", "response_a", "response_b"))
    chats = [_joined(asked, answers) for answers in (one, other)]
    return _vote(row, chats[0][:1], chats[0][1:], chats[1][1:], verdicts.index(True) / 2)


@dataclass(frozen=True)
class SafeRLHF:
    """A prompt and two responses, with the more helpful and the safer one (PKU-Alignment/PKU-SafeRLHF).

    Args:
        by: whether the `better` or the `safer` response is the chosen one.
    """

    by: Literal["better", "safer"] = "better"

    def __post_init__(self) -> None:
        if self.by not in ("better", "safer"):
            raise UserError(f"SafeRLHF: by must be better or safer, not {self.by!r}")

    def __call__(self, row: Row) -> Example:
        """Return the pair."""
        second = _number_of_two(row, f"{self.by}_response_id")
        return _vote(row, string(row, "prompt"), *_two(row, "response_0", "response_1"), second)


def webgpt(row: Row) -> Example:
    """A question and two answers with scores that sum to 0 (openai/webgpt_comparisons)."""
    question = value_of(row, "question")
    text = question if isinstance(question, str) else string(parsed(row, "question", dict), "full_text")
    scores = [number(value_of(row, key)) for key in ("score_0", "score_1")]
    if None in scores:
        raise BadRowError("'score_0' and 'score_1' are not numbers", repr(scores))
    above = (scores[1] or 0.0) - (scores[0] or 0.0)
    return _vote(row, text, *_two(row, "answer_0", "answer_1"), _second(above), abs(above))


def _vote(row: Row, prompt: Text, first: Text, second: Text, above: float, margin: float = 0.0) -> Example:
    """Return a pair; `above` is the probability that the second response is the better one."""
    if above > 0.5:
        return example(row, prompt, second, first, confidence=above, margin=margin)
    return example(row, prompt, first, second, confidence=1 - above, margin=margin)


def _two(row: Row, *keys: str) -> tuple[str, str]:
    first, second = (response(row, key) for key in keys)
    return first, second


def _number_of_two(row: Row, key: str) -> float:
    value = value_of(row, key)
    if isinstance(value, bool) or number(value) not in (0, 1):
        raise BadRowError(f"{key!r} is not the number of one of two responses", repr(value)[:80])
    return float(value)


def _strength(row: Row, key: str) -> tuple[float, float]:
    """Return the probability that the second response is the better one, and by how much the winner is."""
    strength = number(value_of(row, key))
    if strength is None or abs(strength) > 3:
        raise BadRowError(f"{key!r} is not in [-3, 3]", repr(row[key])[:80])
    return _second(strength), abs(strength)


def _second(above: float) -> float:
    return 0.5 if above == 0 else float(above > 0)


def _winner(row: Row) -> float:
    winner = string(row, "winner").strip().lower()
    if winner not in WINNERS and "tie" not in winner and "both" not in winner:
        raise BadRowError("'winner' is not model_a, model_b or a tie", winner[:80])
    return WINNERS.get(winner, 0.5)


def _turns(row: Row, key: str) -> list[str]:
    found = parsed(row, key, list)
    if not found or not all(isinstance(text, str) and text.strip() for text in found):
        raise BadRowError(f"{key!r} is not a list of texts", repr(found)[:80])
    return found


def _joined(asked: list[str], answers: list[str]) -> list[Message]:
    if len(asked) != len(answers):
        raise BadRowError("there is not one response for each turn of the prompt", f"{len(answers)}, {len(asked)}")
    turns = zip(asked, answers, strict=True)
    return [turn for ask, answer in turns for turn in (message("user", ask), message("assistant", answer))]
