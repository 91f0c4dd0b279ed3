"""The formats that are known, each by its columns, with an example row."""

import inspect
from dataclasses import dataclass
from typing import Any

from lit_tr.data.example import Format, Row
from lit_tr.data.formats import pairs, unpaired, votes
from lit_tr.data.formats.rated import CodeUltraFeedback, Ranking, Ratings, UltraFeedback


@dataclass(frozen=True)
class KnownFormat:
    """A format and the rows that have it.

    Args:
        columns: what a row of this format has.
        format: the function that makes examples of such a row.
        row: a row with the columns of the published data.
        without: columns that such a row has not.
    """

    columns: tuple[str, ...]
    format: Format
    row: Row
    without: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name in `lit_tr.data.formats`."""
        return getattr(self.format, "__name__", type(self.format).__name__)

    @property
    def meaning(self) -> str:
        """The first line of its docstring."""
        return (inspect.getdoc(self.format) or "").split("\n")[0]


ASK = {"role": "user", "content": "What is the capital of Peru?"}
YES = {"role": "assistant", "content": "Lima."}
NO = {"role": "assistant", "content": "Cusco."}
HUMAN = {"from": "human", "value": "What is the capital of Peru?"}
GPT = {"from": "gpt", "value": "Lima."}
Q, A, B, S = "What is the capital of Peru?", "Lima.", "Cusco.", "You are a helpful assistant."


def _completion(text: str, rating: str, overall: float) -> dict[str, Any]:
    annotations = {aspect: {"Rating": rating, "Rationale": "So."} for aspect in ("helpfulness", "honesty")}
    return {"model": "a", "response": text, "annotations": annotations, "overall_score": overall}


LABELS = ("label", "kto_tag", "chosen", "rejected", "rejected_response", "rejected_messages")
"""A row with one of these is not to be learned as it is, also where the label is null."""

FORMATS: tuple[KnownFormat, ...] = (
    KnownFormat(
        ("prompt", "chosen", "rejected"),
        pairs.explicit_prompt,
        {"prompt": Q, "chosen": " Lima.", "rejected": " Cusco."},
    ),
    KnownFormat(
        ("question", "chosen", "rejected"), pairs.orca_pairs, {"system": S, "question": Q, "chosen": A, "rejected": B}
    ),
    KnownFormat(
        ("instruction", "chosen", "rejected"),
        pairs.alpaca_pairs,
        {"instruction": "Name the capital.", "input": "Peru", "chosen": A, "rejected": B, "history": []},
    ),
    KnownFormat(
        ("input", "chosen", "rejected"),
        pairs.distilabel_pairs,
        {"system": S, "input": Q, "chosen": A, "rejected": B, "rating": [9, 2], "status": "unchanged"},
    ),
    KnownFormat(
        ("conversations", "chosen", "rejected"),
        pairs.sharegpt,
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": B}},
    ),
    KnownFormat(
        ("messages", "chosen", "rejected"), pairs.axolotl_pairs, {"messages": [ASK], "chosen": YES, "rejected": NO}
    ),
    KnownFormat(("messages", "rejected_response"), pairs.swift_pairs, {"messages": [ASK, YES], "rejected_response": B}),
    KnownFormat(
        ("chosen", "rejected"),
        pairs.implicit_prompt,
        {"chosen": f"\n\nHuman: {Q}\n\nAssistant: Lima.", "rejected": f"\n\nHuman: {Q}\n\nAssistant: Cusco."},
    ),
    KnownFormat(
        ("chosen_messages", "rejected_messages"),
        pairs.message_pairs,
        {
            "chosen_messages": [{"role": "user", "content": [{"type": "text", "text": Q}]}, YES],
            "rejected_messages": [{"role": "user", "content": [{"type": "text", "text": Q}]}, NO],
        },
    ),
    KnownFormat(
        ("instruction", "chosen_response", "rejected_response"),
        pairs.argilla_pairs,
        {
            "source": "evol_instruct",
            "instruction": Q,
            "chosen_response": A,
            "rejected_response": B,
            "chosen_avg_rating": 5.0,
            "rejected_avg_rating": 1.5,
            "chosen_model": "a",
        },
    ),
    KnownFormat(("prompt", "accepted", "rejected"), pairs.accepted_pairs, {"prompt": Q, "accepted": A, "rejected": B}),
    KnownFormat(
        ("question", "accepted", "rejected"), pairs.accepted_pairs, {"question": Q, "accepted": A, "rejected": B}
    ),
    KnownFormat(
        ("question", "response_j", "response_k"),
        pairs.stack_exchange,
        {"qid": 1, "question": Q, "date": "2020/01/01", "metadata": [], "response_j": A, "response_k": B},
    ),
    KnownFormat(
        ("input", "preferred_output", "non_preferred_output"),
        pairs.openai_pairs,
        {
            "input": {"messages": [ASK], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [YES],
            "non_preferred_output": [NO],
        },
    ),
    KnownFormat(
        ("info", "summaries", "choice"),
        votes.tldr,
        {
            "info": {"id": "t3_1", "post": "I lost my key.", "title": "My key", "subreddit": "pets"},
            "summaries": [{"text": " Lost a key.", "policy": "sup1"}, {"text": " Pets.", "policy": "ref"}],
            "choice": 0,
        },
    ),
    KnownFormat(
        ("instruction", "output_1", "output_2", "preference"),
        votes.alpaca_eval,
        {"instruction": Q, "output_1": A, "generator_1": "a", "output_2": B, "generator_2": "b", "preference": 1.25},
    ),
    KnownFormat(
        ("history", "human_ref_A", "human_ref_B", "labels"),
        votes.shp,
        {"post_id": "q", "history": Q, "human_ref_A": B, "human_ref_B": A, "labels": 0, "score_A": 4, "score_B": 9},
    ),
    KnownFormat(
        ("prompt", "response_1", "response_2", "preference_strength"),
        votes.helpsteer2,
        {"split": "train", "prompt": Q, "response_1": A, "response_2": B, "preference_strength": -2},
    ),
    KnownFormat(
        ("context", "response1", "response2", "overall_preference"),
        votes.helpsteer3,
        {"domain": "general", "context": [ASK], "response1": B, "response2": A, "overall_preference": 3},
    ),
    KnownFormat(
        ("conversation_a", "conversation_b", "winner"),
        votes.arena,
        {
            "question_id": "q",
            "model_a": "a",
            "model_b": "b",
            "winner": "model_a",
            "conversation_a": [ASK, YES],
            "conversation_b": [ASK, NO],
        },
    ),
    KnownFormat(
        ("prompt", "response_a", "response_b", "winner_model_a", "winner_model_b", "winner_tie"),
        votes.lmsys_votes,
        {
            "id": 1,
            "prompt": f'["{Q}"]',
            "response_a": f'["{A}"]',
            "response_b": f'["{B}"]',
            "winner_model_a": 1,
            "winner_model_b": 0,
            "winner_tie": 0,
        },
    ),
    KnownFormat(
        ("prompt", "response_a", "response_b", "winner"),
        votes.arena_texts,
        {"id": "1", "prompt": Q, "response_a": B, "response_b": A, "winner": "model_b", "language": "English"},
    ),
    KnownFormat(
        ("prompt", "response_0", "response_1", "better_response_id"),
        votes.SafeRLHF(),
        {"prompt": Q, "response_0": B, "response_1": A, "better_response_id": 1, "safer_response_id": 0},
    ),
    KnownFormat(
        ("question", "answer_0", "answer_1", "score_0", "score_1"),
        votes.webgpt,
        {
            "question": {"dataset": "eli5", "id": "1", "full_text": Q},
            "answer_0": A,
            "answer_1": B,
            "score_0": 0.5,
            "score_1": -0.5,
        },
    ),
    KnownFormat(
        ("instruction", "completions"),
        UltraFeedback(),
        {"source": "evol_instruct", "instruction": Q, "completions": [_completion(B, "2", 4), _completion(A, "5", 9)]},
    ),
    KnownFormat(
        ("instruction", "responses", "annotations"),
        CodeUltraFeedback(),
        {
            "instruction": "Sort x.",
            "preference": "readability",
            "responses": [{"model": "a", "response": "sort(x)"}, {"model": "b", "response": "sorted(x)"}],
            "annotations": [{"model": "b", "rating": "5"}, {"model": "a", "rating": "2"}],
        },
    ),
    KnownFormat(
        ("prompt", "responses", "ranks"), Ranking(), {"prompt": Q, "responses": [" Cusco.", " Lima."], "ranks": [2, 1]}
    ),
    KnownFormat(
        ("prompt", "answers"),
        Ranking(),
        {"prompt": f"\n\nHuman: {Q}\n\nAssistant: ", "answers": [{"answer": A, "rank": 1}, {"answer": B, "rank": 7}]},
    ),
    KnownFormat(
        ("instruction", "generations", "ratings"),
        Ratings(),
        {"instruction": Q, "generations": [B, A], "ratings": [1, 5], "model_name": "a"},
    ),
    KnownFormat(
        ("prompt", "completion", "label"), unpaired.unpaired, {"prompt": Q, "completion": " Lima.", "label": True}
    ),
    KnownFormat(("messages", "label"), unpaired.unpaired_messages, {"messages": [ASK, NO], "label": False}),
    KnownFormat(("messages", "kto_tag"), unpaired.unpaired_messages, {"messages": [ASK, YES], "kto_tag": True}),
    KnownFormat(
        ("conversations", "label"), unpaired.unpaired_sharegpt, {"conversations": [HUMAN, GPT], "label": False}
    ),
    KnownFormat(
        ("conversations", "kto_tag"), unpaired.unpaired_sharegpt, {"conversations": [HUMAN, GPT], "kto_tag": True}
    ),
    KnownFormat(
        ("instruction", "output", "kto_tag"),
        unpaired.unpaired_alpaca,
        {"instruction": Q, "input": "", "output": A, "kto_tag": True},
    ),
    KnownFormat(("prompt", "completion"), unpaired.completion, {"prompt": Q, "completion": " Lima."}, LABELS),
    KnownFormat(("messages",), unpaired.dialogue, {"messages": [ASK, YES]}, LABELS),
    KnownFormat(("conversations",), unpaired.sharegpt_dialogue, {"conversations": [HUMAN, GPT]}, LABELS),
    KnownFormat(("instruction", "output"), unpaired.alpaca, {"instruction": Q, "input": "", "output": A}, LABELS),
    KnownFormat(
        ("system_prompt", "question", "response"),
        unpaired.orca,
        {"id": "t0.1", "system_prompt": S, "question": Q, "response": A},
        LABELS,
    ),
    KnownFormat(
        ("instruction", "generation"),
        unpaired.generation,
        {"instruction": Q, "generation": A, "model_name": "a"},
        LABELS,
    ),
    KnownFormat(("prompt", "generation"), unpaired.generation, {"prompt": Q, "generation": A}, LABELS),
)
"""The formats in the order in which they are looked for: the first one whose columns a row has is taken."""
