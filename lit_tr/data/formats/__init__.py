"""Formats of preference rows: raw row -> Example, or a list of them.

A format is any function from a row (a dict) to an `Example` or several; your own is named by its import path. One with
options is a class, named by `class_path` with `init_args`. A row that does not fit raises `BadRowError`. `FORMATS`
lists those that are detected by their columns.
"""

from lit_tr.data.formats.conditioned import RewardGoals, UserWeights
from lit_tr.data.formats.conversion import Chat, Conversion
from lit_tr.data.formats.detect import detect, known
from lit_tr.data.formats.pairs import (
    accepted_pairs,
    alpaca_pairs,
    argilla_pairs,
    axolotl_pairs,
    distilabel_pairs,
    explicit_prompt,
    implicit_prompt,
    message_pairs,
    openai_pairs,
    orca_pairs,
    sharegpt,
    stack_exchange,
    swift_pairs,
)
from lit_tr.data.formats.rated import CodeUltraFeedback, Ranking, Rated, RatedFormat, Ratings, UltraFeedback
from lit_tr.data.formats.table import FORMATS, KnownFormat
from lit_tr.data.formats.unpaired import (
    alpaca,
    completion,
    dialogue,
    generation,
    orca,
    sharegpt_dialogue,
    unpaired,
    unpaired_alpaca,
    unpaired_messages,
    unpaired_sharegpt,
)
from lit_tr.data.formats.votes import (
    SafeRLHF,
    alpaca_eval,
    arena,
    arena_texts,
    helpsteer2,
    helpsteer3,
    lmsys_votes,
    shp,
    tldr,
    webgpt,
)

__all__ = [
    "FORMATS",
    "Chat",
    "CodeUltraFeedback",
    "Conversion",
    "KnownFormat",
    "Ranking",
    "Rated",
    "RatedFormat",
    "Ratings",
    "RewardGoals",
    "SafeRLHF",
    "UltraFeedback",
    "UserWeights",
    "accepted_pairs",
    "alpaca",
    "alpaca_eval",
    "alpaca_pairs",
    "arena",
    "arena_texts",
    "argilla_pairs",
    "axolotl_pairs",
    "completion",
    "detect",
    "dialogue",
    "distilabel_pairs",
    "explicit_prompt",
    "generation",
    "helpsteer2",
    "helpsteer3",
    "implicit_prompt",
    "known",
    "lmsys_votes",
    "message_pairs",
    "openai_pairs",
    "orca",
    "orca_pairs",
    "sharegpt",
    "sharegpt_dialogue",
    "shp",
    "stack_exchange",
    "swift_pairs",
    "tldr",
    "unpaired",
    "unpaired_alpaca",
    "unpaired_messages",
    "unpaired_sharegpt",
    "webgpt",
]
