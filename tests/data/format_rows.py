"""Two or three good rows of each format, with the columns that the published data sets have."""

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello!"}
BAD = {"role": "assistant", "content": "Go away."}
KIND = {"role": "system", "content": "Be kind."}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "time", "arguments": {}}}]}
NOON = {"role": "tool", "name": "time", "tool_call_id": "1", "content": "12:00"}


def completion(response, overall, **ratings):
    """A completion as in openbmb/UltraFeedback."""
    annotations = {aspect: {"Rating": rating, "Rationale": "So."} for aspect, rating in ratings.items()}
    return {
        "model": "gpt-4",
        "principle": "honesty",
        "response": response,
        "annotations": annotations,
        "overall_score": overall,
        "fine-grained_score": overall / 2,
    }


def code_row(instruction, **rated):
    """A row as in coseal/CodeUltraFeedback; `model=(response, rating)`."""
    return {
        "instruction": instruction,
        "preference": "readability",
        "responses": [{"model": model, "response": response} for model, (response, _) in rated.items()],
        # the ratings stand in another order than the responses
        "annotations": [
            {"model": model, "rating": rating, "rationale": "So."} for model, (_, rating) in reversed(rated.items())
        ],
    }


def tldr_row(first, second, choice):
    """A row as in openai/summarize_from_feedback, comparisons."""
    info = {"id": "t3_1", "post": "I lost it.", "title": "My key", "subreddit": "pets", "site": None, "article": None}
    summaries = [{"text": text, "policy": "sup1", "note": None} for text in (first, second)]
    return {"info": info, "summaries": summaries, "choice": choice, "worker": "w", "extra": {"confidence": None}}


def alpaca_row(preference, **change):
    """A row as in AlpacaEval's annotations.json."""
    row = {"instruction": "Say hi", "output_1": "Hello!", "generator_1": "one", "output_2": "No.", "generator_2": "two"}
    return {**row, "dataset": "helpful_base", "annotator": "gpt4", "preference": preference, **change}


ROWS = {
    "explicit_prompt": [
        {"prompt": "Hi", "chosen": " Hello", "rejected": " No"},
        {"prompt": "Describe a cold river.", "chosen": " It is icy.", "rejected": " It is hot."},
    ],
    "implicit_prompt": [
        {
            "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: yes",
            "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: no",
        },
        {"chosen": "\n\nHuman: a\n\nAssistant: yes", "rejected": "\n\nHuman: a\n\nAssistant: no", "prompt": None},
    ],
    "chat": [
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [KIND, USER], "chosen": [CALL, NOON, GOOD], "rejected": [BAD]},
    ],
    "chat_implicit": [
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {"chosen": [USER, GOOD, USER, GOOD], "rejected": [USER, BAD, USER, GOOD]},
        {"chosen": [KIND, USER, CALL, NOON, GOOD], "rejected": [KIND, USER, CALL, NOON, BAD]},
    ],
    "sharegpt": [
        {
            "conversations": [{"from": "human", "value": "Hi"}],
            "chosen": {"from": "gpt", "value": "Hello!"},
            "rejected": {"from": "gpt", "value": "Go away."},
        },
        {
            "conversations": [{"from": "system", "value": "Be kind."}, {"from": "human", "value": "Hi"}],
            "chosen": [{"from": "gpt", "value": "Hello!"}],
            "rejected": [{"from": "gpt", "value": "Go away."}],
        },
    ],
    "unpaired": [
        {"prompt": "Hi", "completion": " Hello", "label": True},
        {"prompt": [USER], "completion": [BAD], "label": False},
    ],
    "tldr": [tldr_row(" Lost my key.", " Pets.", 0), tldr_row("Pets.", "Lost my key.", 1)],
    "AlpacaEval": [alpaca_row(1.25), alpaca_row(2), alpaca_row(1.5)],
    "UltraFeedback": [
        {
            "source": "evol_instruct",
            "instruction": "Say hi",
            "models": ["a", "b", "c", "d"],
            "completions": [
                completion("No.", 10.0, helpfulness="1", honesty="2"),  # the published 10 that is a 1
                completion("Hello!", 8.5, helpfulness="5", honesty="4"),
                completion("Hm.", 6.0, helpfulness="3", honesty="N/A"),
                completion("Hey!", 7.0, helpfulness="N/A", honesty="N/A"),
            ],
        },
        {
            "instruction": "Say no",
            "completions": [completion("No.", 3, helpfulness=3), completion("Yes.", 2.0, helpfulness=2)],
        },
    ],
    "CodeUltraFeedback": [
        code_row("Sort it", a=("sort(x)", "2"), b=("sorted(x)", "5"), c=("x", "N/A"), d=("x.sort()", "4")),
        code_row("Add them", a=("a + b", "4"), b=("sum", "1")),
    ],
    "Ranking": [
        {"prompt": "Hi", "responses": [" No", " Hello", " Hm"], "ranks": [3, 1, 2]},
        {"prompt": "Hi", "answers": [{"answer": " No", "model": "a", "rank": 7}, {"answer": " Hello", "rank": 1.0}]},
    ],
}
