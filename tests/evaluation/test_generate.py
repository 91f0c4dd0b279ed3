import copy

import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM

from lit_tr.embedded import TINY
from lit_tr.evaluation import generate
from lit_tr.policy import PretrainedPolicy


@pytest.fixture(scope="module")
def model():
    return PretrainedPolicy(TINY).load()


def prompts(tokenizer, *texts):
    return [tokenizer(text)["input_ids"] for text in texts]


def test_responses_end_and_are_text_without_special_tokens(model, tokenizer):
    ids = prompts(tokenizer, "Describe a cold river.", "What is a loud and very old market like?")
    samples = generate(model, tokenizer, ids, max_new_tokens=120)
    for prompt, sample in zip(ids, samples, strict=True):
        assert sample.prompt == prompt
        assert sample.response[-1] == tokenizer.eos_token_id
        assert tokenizer.eos_token_id not in sample.response[:-1]
        assert sample.text == tokenizer.decode(sample.response[:-1])
    assert samples[0].prompt_text == "Describe a cold river."


def test_samples_are_seeded_and_leave_the_random_state_and_the_mode_alone(model, tokenizer):
    ids = prompts(tokenizer, "Describe a cold river.")
    state = torch.get_rng_state()
    first, again, other = (generate(model, tokenizer, ids, seed=seed)[0].response for seed in (1, 1, 2))
    assert first == again != other
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training


def test_samples_follow_the_models_own_distribution(llama_dir, tokenizer):
    """First tokens of 4,000 samples against the probabilities: Pearson's chi-squared, 10 likeliest and the rest."""
    model = LlamaForCausalLM.from_pretrained(llama_dir)
    prompt = [5, 17, 300]
    # a longer prompt beside it, so that the others are padded on the left
    samples = generate(model, tokenizer, [prompt] * 4000 + [[9] * 8], max_new_tokens=1, batch_size=4001)[:-1]
    with torch.no_grad():
        probabilities = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    top = probabilities.topk(10)
    counts = torch.bincount(torch.tensor([sample.response[0] for sample in samples]), minlength=512)
    expected = torch.cat([top.values, 1 - top.values.sum(0, keepdim=True)]) * 4000
    observed = torch.cat([counts[top.indices], 4000 - counts[top.indices].sum(0, keepdim=True)])
    chi_squared = ((observed - expected) ** 2 / expected).sum().item()
    assert chi_squared < 29.6  # 99.9 % point for 10 degrees of freedom


def test_a_shipped_repetition_penalty_does_not_bend_the_samples(model, tokenizer):
    ids = prompts(tokenizer, "Describe a cold river.", "What is a loud market like?")
    plain = generate(model, tokenizer, ids)
    shipped = copy.copy(model)
    shipped.generation_config = GenerationConfig(repetition_penalty=9.0, min_p=0.5, top_k=1, no_repeat_ngram_size=1)
    assert generate(shipped, tokenizer, ids) == plain
