import math
from copy import deepcopy

import pytest
import torch
from transformers import AutoModelForCausalLM

from lit_tr.data import Objects
from lit_tr.embedded import TINY, GoldReward, SyntheticPairs, resolve
from lit_tr.errors import UserError
from lit_tr.evaluation import JudgedScore, RankingAccuracy

PAIRS = SyntheticPairs(size=12, seed=3)


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(resolve(TINY), dtype=torch.float32).eval()


@pytest.mark.parametrize("chat", [False, True])
def test_responses_are_judged_one_to_each_prompt(model, tokenizer, chat):
    asked = []

    def judge(prompt, response):
        asked.append((prompt, response))
        return GoldReward()(prompt, response)

    texts = [row["prompt"] for _, row in PAIRS.rows()]
    rows = Objects([{"prompt": [{"role": "user", "content": text}]} for text in texts]) if chat else PAIRS
    if chat:
        tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    try:
        scores = JudgedScore(judge, prompts=5, max_new_tokens=24)(model, tokenizer, rows)
    finally:
        tokenizer.chat_template = None
    assert [prompt for prompt, _ in asked] == texts[:5]
    assert scores == [GoldReward()(*one) for one in asked]
    assert len({response for _, response in asked}) == 5


def test_the_seed_says_which_responses(model, tokenizer):
    scores = [
        JudgedScore(lambda prompt, response: len(response), prompts=4, max_new_tokens=16, seed=seed)(
            model, tokenizer, PAIRS
        )
        for seed in (0, 0, 1)
    ]
    assert scores[0] == scores[1] != scores[2]


def test_a_scorer_is_asked_once_and_may_have_no_score(model, tokenizer):
    class Scorer:
        name = "warm"

        def score(self, candidates):
            return [math.nan if "cold" in one.query else 1.0 for one in candidates]

    scores = JudgedScore(Scorer(), prompts=12, max_new_tokens=2)(model, tokenizer, PAIRS)
    cold = ["cold" in row["prompt"] for _, row in PAIRS.rows()]
    assert [math.isnan(score) for score in scores] == cold


def test_ranking_accuracy_compares_log_probs_of_whole_responses(model, tokenizer):
    """Against a plain forward pass of each response."""

    def log_prob(prompt, response):
        start = tokenizer(prompt).input_ids
        ids = torch.tensor([start + tokenizer(response).input_ids + [tokenizer.eos_token_id]])
        with torch.no_grad():
            found = model(ids).logits[0, :-1].log_softmax(-1)
        return found[range(ids.shape[1] - 1), ids[0, 1:]][len(start) - 1 :].sum().item()

    rows = [row for _, row in PAIRS.rows()]
    signs = [log_prob(row["prompt"], row["chosen"]) > log_prob(row["prompt"], row["rejected"]) for row in rows]
    assert 0 < sum(signs) < 12
    assert RankingAccuracy()(model, tokenizer, PAIRS) == [*map(float, signs)]
    assert RankingAccuracy(pairs=5)(model, tokenizer, PAIRS) == [*map(float, signs[:5])]


def test_responses_that_are_equally_likely_count_one_half(model, tokenizer):
    uniform = deepcopy(model)
    uniform.lm_head.weight.data.zero_()
    rows = [{"prompt": "a", "chosen": " b c", "rejected": " c b"}, {"prompt": "a", "chosen": " b", "rejected": " c b"}]
    assert RankingAccuracy()(uniform, tokenizer, Objects(rows, chat=False)) == [0.5, 1.0]


def test_rows_that_are_no_pairs_are_left_out(model, tokenizer):
    rows = [{"prompt": "a", "chosen": " b", "rejected": " c"}, {"prompt": "a", "chosen": " b" * 400, "rejected": " c"}]
    assert len(RankingAccuracy(max_length=64)(model, tokenizer, Objects(rows, chat=False))) == 1
    alone = Objects([{"prompt": "a", "completion": " b", "label": True}], chat=False)
    with pytest.raises(UserError, match="has no pair that can be scored; give other rows"):
        RankingAccuracy()(model, tokenizer, alone)


@pytest.mark.parametrize("made", [lambda: JudgedScore(len, prompts=0), lambda: RankingAccuracy(pairs=0)])
def test_numbers_below_1_are_refused(made):
    with pytest.raises(UserError, match="must be at least 1"):
        made()
