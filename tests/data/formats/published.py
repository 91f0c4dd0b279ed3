"""A row of each format beside its example row, with the columns of the published data, and what both become by hand."""

from lit_tr.data.example import Example

USER = {"role": "user", "content": "Hi"}
GOOD = {"role": "assistant", "content": "Hello!"}
BAD = {"role": "assistant", "content": "Go away."}
KIND = {"role": "system", "content": "Be kind."}
CALL = {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "time", "arguments": {}}}]}
NOON = {"role": "tool", "name": "time", "tool_call_id": "1", "content": "12:00"}
TOOL = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}}}}

CAPITAL = "What is the capital of Peru?"
ASK, YES, NO = (
    [{"role": role, "content": text}]
    for role, text in (("user", CAPITAL), ("assistant", "Lima."), ("assistant", "Cusco."))
)
TEXT = Example(CAPITAL, "Lima.", "Cusco.")
SPACED = Example(CAPITAL, " Lima.", " Cusco.")
WITH_SYSTEM = Example(CAPITAL, "Lima.", "Cusco.", system="You are a helpful assistant.")
CHAT = Example(ASK, YES, NO)


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


def said(*texts):
    """Messages by the user and the assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def answered(*texts):
    """Messages by the assistant and the user in turn."""
    return said("", *texts)[1:]


def turns(*texts):
    """The same as ShareGPT has it."""
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


ROWS = {  # by the columns of FORMATS: what its example row becomes, another row, and what this one becomes
    "prompt+chosen+rejected": (
        SPACED,
        {  # HuggingFaceH4/ultrafeedback_binarized
            "prompt": "Hi",
            "prompt_id": "0a",
            "chosen": said("Hi", "Hello!"),
            "rejected": said("Hi", "Go away."),
            "messages": said("Hi", "Hello!"),
            "score_chosen": 8.5,
            "score_rejected": 2.0,
        },
        Example([USER], [GOOD], [BAD], margin=6.5),
    ),
    "question+chosen+rejected": (
        WITH_SYSTEM,
        {"system": "", "question": "Hi", "chosen": "Hello!", "rejected": "Go away."},
        Example("Hi", "Hello!", "Go away."),
    ),
    "instruction+chosen+rejected": (
        Example("Name the capital.\nPeru", "Lima.", "Cusco."),
        {
            "instruction": "And now?",
            "input": "",
            "chosen": "Noon.",
            "rejected": "Late.",
            "system": "Be kind.",
            "history": [["Hi", "Hello!"]],
        },
        Example([KIND, *said("Hi", "Hello!", "And now?")], answered("Noon."), answered("Late.")),
    ),
    "input+chosen+rejected": (
        WITH_SYSTEM,
        {  # argilla/distilabel-intel-orca-dpo-pairs
            "system": None,
            "input": "Hi",
            "chosen": "Hello!",
            "rejected": "Go away.",
            "generations": ["Go away.", "Hello!"],
            "order": ["rejected", "chosen"],
            "rating": [1.0, 9.0],
            "status": "swapped",
            "chosen_score": 9.0,
        },
        Example("Hi", "Hello!", "Go away."),
    ),
    "conversations+chosen+rejected": (
        CHAT,
        {
            "conversations": [
                {"from": "human", "value": "Time?"},
                {"from": "function_call", "value": '{"name": "time", "arguments": {}}'},
                {"from": "observation", "value": "12:00"},
            ],
            "chosen": turns("", "Noon.")[1],
            "rejected": turns("", "Late.")[1],
            "system": "Be kind.",
            "tools": '[{"type": "function", "function": {"name": "time"}}]',
        },
        Example(
            [KIND, *said("Time?"), CALL, {"role": "tool", "content": "12:00"}],
            answered("Noon."),
            answered("Late."),
            tools=[{"type": "function", "function": {"name": "time"}}],
        ),
    ),
    "messages+chosen+rejected": (
        CHAT,
        {"messages": [KIND, USER], "chosen": GOOD, "rejected": BAD},
        Example([KIND, USER], [GOOD], [BAD]),
    ),
    "messages+rejected_response": (
        CHAT,
        {"messages": [KIND, *said("Hi", "Hello!", "And now?", "Noon.")], "rejected_response": "Late."},
        Example([KIND, *said("Hi", "Hello!", "And now?")], answered("Noon."), answered("Late.")),
    ),
    "chosen+rejected": (
        Example(f"\n\nHuman: {CAPITAL}\n\nAssistant:", " Lima.", " Cusco."),
        {  # argilla/dpo-mix-7k
            "dataset": "argilla/ultrafeedback",
            "chosen": said("Hi", "Hello!", "And now?", "Noon."),
            "rejected": said("Hi", "Hello!", "And now?", "Late."),
            "chosen_rating": 5.0,
            "rejected_rating": 3.5,
        },
        Example(said("Hi", "Hello!", "And now?"), answered("Noon."), answered("Late."), margin=1.5),
    ),
    "chosen_messages+rejected_messages": (
        CHAT,
        {"prompt": "Hi", "chosen_messages": [GOOD], "rejected_messages": [BAD]},
        Example([USER], [GOOD], [BAD]),
    ),
    "instruction+chosen_response+rejected_response": (
        Example(CAPITAL, "Lima.", "Cusco.", margin=3.5),
        {"system": "Be kind.", "instruction": "Hi", "chosen_response": "Hello!", "rejected_response": "Go away."},
        Example("Hi", "Hello!", "Go away.", system="Be kind."),
    ),
    "prompt+accepted+rejected": (
        TEXT,
        {"prompt": "Hi", "accepted": "Hello!", "rejected": "Go away.", "rejected_reward": 0.5, "chosen_reward": 2},
        Example("Hi", "Hello!", "Go away.", margin=1.5),
    ),
    "question+accepted+rejected": (
        TEXT,
        {"question": "Hi", "accepted": "Hello!", "rejected": "Go away.", "prompt": None},
        Example("Hi", "Hello!", "Go away."),
    ),
    "question+response_j+response_k": (
        TEXT,
        {"qid": 7, "question": "<p>Hi</p>", "response_j": "Hello!", "response_k": "Hm.", "metadata": ["stackoverflow"]},
        Example("<p>Hi</p>", "Hello!", "Hm."),
    ),
    "input+preferred_output+non_preferred_output": (
        CHAT,
        {
            "input": {"messages": [KIND, USER], "tools": [TOOL], "parallel_tool_calls": True},
            "preferred_output": [CALL],
            "non_preferred_output": [BAD],
        },
        Example([KIND, USER], [CALL], [BAD], tools=[TOOL]),
    ),
    "info+summaries+choice": (
        Example(
            "SUBREDDIT: r/pets\n\nTITLE: My key\n\nPOST: I lost my key.\n\nTL;DR:",
            " Lost a key.",
            " Pets.",
        ),
        tldr_row("Pets.", "Lost my key.", 1),
        Example("SUBREDDIT: r/pets\n\nTITLE: My key\n\nPOST: I lost it.\n\nTL;DR:", " Lost my key.", " Pets."),
    ),
    "instruction+output_1+output_2+preference": (
        Example(CAPITAL, "Lima.", "Cusco.", confidence=0.75),
        {
            "instruction": "Hi",
            "output_1": "Go away.",
            "generator_1": "one",
            "output_2": "Hello!",
            "generator_2": "two",
            "dataset": "helpful_base",
            "annotator": "gpt4",
            "preference": 2,
        },
        Example("Hi", "Hello!", "Go away."),
    ),
    "history+human_ref_A+human_ref_B+labels": (
        Example(CAPITAL, "Lima.", "Cusco.", margin=5.0),
        {
            "post_id": "qt3nxl",
            "domain": "askculinary_train",
            "upvote_ratio": 0.98,
            "history": "How long do eggs boil?",
            "c_root_id_A": "a",
            "c_root_id_B": "b",
            "human_ref_A": "Ten minutes.",
            "human_ref_B": "Who knows.",
            "labels": 1,
            "seconds_difference": 60.0,
            "score_A": 340,
            "score_B": 166,
            "score_ratio": 2.05,
        },
        Example("How long do eggs boil?", "Ten minutes.", "Who knows.", margin=174.0),
    ),
    "prompt+response_1+response_2+preference_strength": (
        Example(CAPITAL, "Lima.", "Cusco.", margin=2.0),
        {
            "split": "validation",
            "prompt": "Hi",
            "response_1": "Hello!",
            "response_2": "Hey!",
            "preference_strength": 0,
            "preference_statement": "Both greet.",
        },
        Example("Hi", "Hello!", "Hey!", confidence=0.5),
    ),
    "context+response1+response2+overall_preference": (
        Example(ASK, YES, NO, margin=3.0),
        {
            "domain": "stem",
            "language": "english",
            "context": said("Hi", "Hello!", "And now?"),
            "response1": "Noon.",
            "response2": "Late.",
            "overall_preference": -1,
            "individual_preference": [{"score": -1, "reasoning": "So."}],
        },
        Example(said("Hi", "Hello!", "And now?"), answered("Noon."), answered("Late."), margin=1.0),
    ),
    "conversation_a+conversation_b+winner": (
        CHAT,
        {
            "question_id": "q",
            "model_a": "alpaca-13b",
            "model_b": "koala-13b",
            "winner": "tie (bothbad)",
            "judge": "arena_user_1",
            "conversation_a": said("Hi", "Hello!", "And now?", "Noon."),
            "conversation_b": said("Hi", "Hey!", "And now?", "Late."),
            "turn": 2,
        },
        Example([USER], answered("Hello!", "And now?", "Noon."), answered("Hey!", "And now?", "Late."), confidence=0.5),
    ),
    "prompt+response_a+response_b+winner_model_a+winner_model_b+winner_tie": (
        CHAT,
        {
            "id": 65089,
            "model_a": "gpt-3.5",
            "model_b": "mistral",
            "prompt": '["Hi","And now?"]',
            "response_a": '["Hello!","Late."]',
            "response_b": '["Hey!","Noon."]',
            "winner_model_a": "0",
            "winner_model_b": "1",
            "winner_tie": "0",
        },
        Example([USER], answered("Hey!", "And now?", "Noon."), answered("Hello!", "And now?", "Late.")),
    ),
    "prompt+response_a+response_b+winner": (
        TEXT,
        {"id": "9", "prompt": "Hi", "response_a": "Hello!", "response_b": "Hey!", "winner": "tie"},
        Example("Hi", "Hello!", "Hey!", confidence=0.5),
    ),
    "prompt+response_0+response_1+better_response_id": (
        TEXT,
        {
            "prompt": "Hi",
            "response_0": "Hello!",
            "response_1": "Go away.",
            "prompt_source": "Alpaca3-8B",
            "is_response_0_safe": True,
            "is_response_1_safe": False,
            "better_response_id": 0,
            "safer_response_id": 0,
        },
        Example("Hi", "Hello!", "Go away."),
    ),
    "question+answer_0+answer_1+score_0+score_1": (
        Example(CAPITAL, "Lima.", "Cusco.", margin=1.0),
        {
            "question": {"dataset": "eli5", "id": "1", "full_text": "Why is the sky blue?"},
            "quotes_0": {"title": [], "extract": []},
            "answer_0": "It is not.",
            "tokens_0": {"prefix": [1], "completion": [2]},
            "score_0": -0.25,
            "answer_1": "It scatters [1].",
            "score_1": 0.25,
        },
        Example("Why is the sky blue?", "It scatters [1].", "It is not.", margin=0.5),
    ),
    "instruction+completions": (
        [Example(CAPITAL, "Lima.", "Cusco.", margin=3.0)],
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
        [Example("Say hi", "Hello!", "No.", margin=3.0)],  # means 1.5, 4.5, 3 and none
    ),
    "instruction+responses+annotations": (
        [Example("Sort x.", "sorted(x)", "sort(x)", margin=3.0)],
        code_row("Sort it", a=("sort(x)", "2"), b=("sorted(x)", "5"), c=("x", "N/A"), d=("x.sort()", "4")),
        [Example("Sort it", "sorted(x)", "sort(x)", margin=3.0)],
    ),
    "prompt+responses+ranks": (
        [Example(CAPITAL, " Lima.", " Cusco.", margin=1.0)],
        {"prompt": "Hi", "responses": [" No", " Hello", " Hm"], "ranks": [3, 1, 2]},
        [Example("Hi", " Hello", " No", margin=2.0)],
    ),
    "prompt+answers": (
        [Example(f"\n\nHuman: {CAPITAL}\n\nAssistant: ", "Lima.", "Cusco.", margin=6.0)],
        {
            "prompt": "\n\nHuman: Hi\n\nAssistant: ",
            "answers": [{"answer": "No", "model": "a", "rank": 7}, {"answer": "Hello", "rank": 1.0}],
            "turns": 1,
        },
        [Example("\n\nHuman: Hi\n\nAssistant: ", "Hello", "No", margin=6.0)],
    ),
    "instruction+generations+ratings": (
        [Example(CAPITAL, "Lima.", "Cusco.", margin=4.0)],
        {"instruction": "Hi", "generations": ["Hello!", "Hey!", "No."], "ratings": [4, None, 1]},
        [Example("Hi", "Hello!", "No.", margin=3.0)],
    ),
    "prompt+completion+label": (
        Example(CAPITAL, " Lima.", None),
        {"prompt": "Hi", "completion": "Go away.", "label": "False", "rating": 1.5},  # of a CSV
        Example("Hi", None, "Go away."),
    ),
    "messages+label": (
        Example(ASK, None, NO),
        {"messages": said("Hi", "Hello!", "And now?", "Noon."), "label": True},
        Example(said("Hi", "Hello!", "And now?"), answered("Noon."), None),
    ),
    "messages+kto_tag": (
        Example(ASK, YES, None),
        {"messages": '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]', "kto_tag": "0"},
        Example([USER], None, [GOOD]),  # of a CSV
    ),
    "conversations+label": (
        Example(ASK, None, YES),
        {"conversations": said("Hi", "Hello!"), "label": True},
        Example([USER], [GOOD], None),
    ),
    "conversations+kto_tag": (
        Example(ASK, YES, None),
        {"conversations": turns("Hi", "Go away."), "kto_tag": False, "system": "Be kind."},
        Example([KIND, USER], None, [BAD]),
    ),
    "instruction+output+kto_tag": (
        Example(CAPITAL, "Lima.", None),
        {"instruction": "Greet.", "input": "Bo", "output": "Go away.", "kto_tag": 0},
        Example("Greet.\nBo", None, "Go away."),
    ),
    "prompt+completion": (
        Example(CAPITAL, " Lima.", None),
        {"prompt": [USER], "completion": [GOOD], "tools": [TOOL], "chat_template_kwargs": {"thinking": False}},
        Example([USER], [GOOD], None, tools=[TOOL], template={"thinking": False}),
    ),
    "messages": (
        Example(ASK, YES, None),
        {"messages": [KIND, *said("Hi", "Hello!", "And now?", "Noon.", "Thanks")]},
        Example([KIND, *said("Hi", "Hello!", "And now?")], answered("Noon."), None),
    ),
    "conversations": (
        Example(ASK, YES, None),
        {"conversations": [{"from": "system", "value": "Be kind.", "weight": None}, *turns("Hi", "Hello!")]},
        Example([KIND, USER], [GOOD], None),
    ),
    "instruction+output": (
        Example(CAPITAL, "Lima.", None),
        {"instruction": "Greet.", "input": "Bo", "output": "Hello!", "text": "Below is an instruction ..."},
        Example("Greet.\nBo", "Hello!", None),
    ),
    "system_prompt+question+response": (
        Example(CAPITAL, "Lima.", None, system="You are a helpful assistant."),
        {"id": "flan.1", "system_prompt": "", "question": "Hi", "response": "Hello!"},
        Example("Hi", "Hello!", None),
    ),
    "instruction+generation": (
        Example(CAPITAL, "Lima.", None),
        {"system_prompt": "Be kind.", "instruction": "Hi", "generation": "Hello!", "distilabel_metadata": {"a": 1}},
        Example("Hi", "Hello!", None, system="Be kind."),
    ),
    "prompt+generation": (
        Example(CAPITAL, "Lima.", None),
        {"prompt": "Hi", "generation": "Hello!", "model_name": "a"},
        Example("Hi", "Hello!", None),
    ),
}
