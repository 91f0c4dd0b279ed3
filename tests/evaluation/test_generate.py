import pytest
import torch
from transformers import LlamaForCausalLM

from lit_tr.data.batches import PaddedCollator
from lit_tr.embedded import TINY
from lit_tr.evaluation import generate
from lit_tr.policy import PretrainedPolicy, response_log_probs


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
    samples = generate(model, tokenizer, [prompt] * 4000, max_new_tokens=1, batch_size=4000)
    with torch.no_grad():
        probabilities = model(torch.tensor([prompt])).logits[0, -1].softmax(-1)
    top = probabilities.topk(10)
    counts = torch.bincount(torch.tensor([sample.response[0] for sample in samples]), minlength=512)
    expected = torch.cat([top.values, 1 - top.values.sum(0, keepdim=True)]) * 4000
    observed = torch.cat([counts[top.indices], 4000 - counts[top.indices].sum(0, keepdim=True)])
    chi_squared = ((observed - expected) ** 2 / expected).sum().item()
    assert chi_squared < 29.6  # 99.9 % point for 10 degrees of freedom


def test_padding_on_the_left_does_not_matter(model, tokenizer):
    """A sample's log-prob is that of its greedy steps alone: score it without padding."""
    ids = prompts(tokenizer, "Describe a cold river.", "Write about a big ship.")
    sample = generate(model, tokenizer, ids)[0]
    alone = PaddedCollator(0)([sample.tokenized()])
    both = PaddedCollator(0)([one.tokenized() for one in generate(model, tokenizer, ids)])
    with torch.no_grad():
        torch.testing.assert_close(response_log_probs(model, alone)[0], response_log_probs(model, both)[0])
