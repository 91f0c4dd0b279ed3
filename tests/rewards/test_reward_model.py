import math

import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from lit_tr.embedded import TINY, resolve
from lit_tr.errors import UserError
from lit_tr.evaluation.judges import ByScore, Pair
from lit_tr.rewards import Candidate, RewardModel

TEMPLATE = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
PROMPTS = ["Describe a cold river.", "Tell me about a loud market.", "Write about an old ship."]
RESPONSES = ["It is icy.", "The market is loud. It looks noisy and busy, and people call it roaring.", "Ship."]
CANDIDATES = [Candidate(*both) for both in zip(PROMPTS, RESPONSES, strict=True)]
EXACT = "float32"


def saved(folder, labels=1, template=TEMPLATE):
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(resolve(TINY), num_labels=labels)
    AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(resolve(TINY))
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("rewards"))


def alone(folder, text):
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=EXACT).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        return model(torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])).logits.item()


def test_rewards_are_those_of_each_response_alone(folder):
    expected = [alone(folder, f"{prompt}\n{response}\n") for prompt, response in zip(PROMPTS, RESPONSES, strict=True)]
    for size in (1, 2, 16):
        found = RewardModel(folder, device="cpu", dtype=EXACT, batch_size=size).score(CANDIDATES)
        assert found == pytest.approx(expected, abs=1e-5)


def test_messages_and_texts_are_laid_out_alike(folder):
    model = RewardModel(folder, device="cpu", dtype=EXACT)
    chats = [Candidate([{"role": "user", "content": one.prompt}], one.response) for one in CANDIDATES]
    assert model.score(chats) == pytest.approx(model.score(CANDIDATES), abs=1e-6)


def test_without_a_template_prompt_and_response_are_two_texts(tmp_path):
    folder = saved(tmp_path / "plain", template=None)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=EXACT).eval()
    with torch.no_grad():
        expected = model(torch.tensor([tokenizer(PROMPTS[0], RESPONSES[0]).input_ids])).logits.item()
    assert RewardModel(folder, device="cpu", dtype=EXACT).score(CANDIDATES[:1]) == pytest.approx([expected], abs=1e-5)


def test_what_is_too_long_has_no_score(folder):
    found = RewardModel(folder, device="cpu", dtype=EXACT, max_length=20).score(CANDIDATES)
    assert [math.isnan(one) for one in found] == [False, True, False]
    judge = ByScore(RewardModel(folder, device="cpu", dtype=EXACT, max_length=20), temperature=1.0)
    [verdict] = judge.compare([Pair(PROMPTS[1], RESPONSES[0], RESPONSES[1])])
    assert (verdict.preference, verdict.unparsable) == (None, (1, 0))


def test_a_classifier_of_several_classes_is_none(tmp_path):
    with pytest.raises(UserError, match="one output, and this one has 3"):
        RewardModel(saved(tmp_path / "classes", labels=3), device="cpu", dtype=EXACT).score(CANDIDATES)


def test_a_folder_without_a_model_is_named(tmp_path):
    with pytest.raises(UserError, match="can be loaded from here"):
        RewardModel(str(tmp_path)).score(CANDIDATES)
